"""The smallest domain package there can be, for the tests of the training engine."""
