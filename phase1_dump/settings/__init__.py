"""What a live model says of its settings: of everything that changes results and shows in no shape.

`live_settings` reads them, from the TransformerConfig and from modules. `fields` accounts for every field of a
TransformerConfig: compared through a setting, harmless to a checkpoint, or refused. Imports no torch.
"""
