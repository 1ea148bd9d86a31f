"""Tables of architectures whose decoder has latent attention, and few others' parts."""
