"""The science: tensors and configurations in, tensors and numbers out. It knows no Prefect, no Zarr and no path."""
