"""Tables of decoders without experts."""
