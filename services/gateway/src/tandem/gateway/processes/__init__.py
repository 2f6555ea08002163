"""A gateway as several processes on one port: who starts them, keeps them, and speaks for all of them."""
