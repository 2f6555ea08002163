"""What the processes of one gateway need of each other, where it runs as several."""
