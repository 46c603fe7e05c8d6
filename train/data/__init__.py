"""Data sets, record transforms and input pipelines."""
