"""The model-serving microservice."""
