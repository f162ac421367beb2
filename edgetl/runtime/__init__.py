"""What runs on the device: bundles, engines and preprocessing, without torch, pydantic or a network."""
