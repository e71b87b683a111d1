"""What the login node and the compute nodes both read and write; standard library only."""
