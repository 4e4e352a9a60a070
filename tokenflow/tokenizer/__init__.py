"""Images to codes and back: presets, encoders, teachers, quantiser, decoders, losses (paper, section 3.2)."""
