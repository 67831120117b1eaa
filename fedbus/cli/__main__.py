"""`python -m fedbus.cli`, the same as `fedbus`."""

from fedbus.cli.main import main

if __name__ == "__main__":
    main()
