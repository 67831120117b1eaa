"""What `make bench` measures: fedbus, raw pyzmq and other brokers, side by side in one run."""
