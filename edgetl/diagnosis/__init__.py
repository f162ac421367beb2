"""Why an engine or a bundle answers otherwise than PyTorch did: what is wrong, by its name, and where it begins."""
