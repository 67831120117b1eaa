"""The hub: delivers the bus to consumers, each at its own pace."""
