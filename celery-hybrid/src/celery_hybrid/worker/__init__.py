"""What runs in a worker's main process only: consumer and request, systemd, and commands of remote control."""
