"""`python -m kd_gym` is `kd-gym`."""

from kd_gym.cli import main

if __name__ == "__main__":
    main()
