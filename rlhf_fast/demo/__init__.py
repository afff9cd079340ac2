"""The bundled demonstration data and how a demonstration divides it. Stages are not defined here, only fed."""
