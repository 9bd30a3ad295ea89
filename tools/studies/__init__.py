"""Experiments and calculations behind the pages on learning, codec training and scaling."""
