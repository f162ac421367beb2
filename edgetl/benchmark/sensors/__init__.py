"""What a machine says about itself while something is measured on it: one file per family of sensors."""
