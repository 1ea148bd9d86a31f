"""Ways in which a checkpoint was lost or published wrong: each as a shell would see it, with real processes."""
