"""Distributed Shampoo, SOAP and KL-Shampoo on stacked, sharded blocks."""
