"""edgetl: fine-tune, export, quantize, prove and ship models to edge devices."""

__version__ = "0.1.0"
