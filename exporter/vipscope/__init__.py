"""vipscope: what a Kubernetes node's kernel holds for its Services, as metrics."""

__version__ = "0.1.0"
