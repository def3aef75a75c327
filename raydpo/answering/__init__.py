"""A model that is asked: answers to a file of prompts, and a conversation in the terminal."""
