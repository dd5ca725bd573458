"""Learn, run and ship the GR00T-Dreams data engine."""
__version__ = "0.1.0"
