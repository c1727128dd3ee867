"""The fused LM head: per-token log-probabilities and their gradients without an [N, V] matrix in float32."""
