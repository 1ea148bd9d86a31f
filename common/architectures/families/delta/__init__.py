"""Tables of families whose layers are Gated DeltaNets and attention with an output gate."""
