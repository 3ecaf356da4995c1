"""What is learnt from, and measured with: experts, their rollouts, labelled scenes and frames."""
