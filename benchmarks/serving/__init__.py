"""The service at accelerator speed, beside other servers and beside the ideal."""
