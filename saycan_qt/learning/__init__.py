"""What turns recorded episodes into checkpoints."""
