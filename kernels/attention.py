"""Non-causal grouped-query attention that reads the fused qkv projection as it lies in memory.

Letters: B batch, N tokens, H query heads, K key/value heads, G = H / K query heads per kv head, D head dim.
Grouped-query attention: Ainslie et al. 2023 (arXiv:2305.13245).
"""

from torch import Tensor


def attention_reference(qkv: Tensor, num_heads: int, num_kv_heads: int) -> Tensor:
    """softmax(q kT / sqrt(D)) v with the softmax in float32.

    Plain matrix products instead of scaled_dot_product_attention: on CPU its flash backward took 37 % of a
    training step, and grouping the query heads of one kv head into one product avoids expanding k and v.
    """
    B, N, width = qkv.shape
    H, K = num_heads, num_kv_heads
    D, G = width // (H + 2 * K), H // K
    q, k, v = qkv.split([H * D, K * D, K * D], dim=-1)  # [B, N, H*D], [B, N, K*D] twice
    q = q.reshape(B, N, K, G, D).permute(0, 2, 3, 1, 4).reshape(B, K, G * N, D)
    k = k.reshape(B, N, K, D).permute(0, 2, 3, 1)  # [B, K, D, N]
    v = v.reshape(B, N, K, D).transpose(1, 2)  # [B, K, N, D]
    weights = ((q * D**-0.5) @ k).float().softmax(dim=-1).to(v.dtype)  # [B, K, G*N, N]
    out = (weights @ v).reshape(B, K, G, N, D)
    return out.permute(0, 3, 1, 2, 4).reshape(B, N, H * D)


def attention(qkv: Tensor, num_heads: int, num_kv_heads: int) -> Tensor:
    """Attention over one packed projection.

    Args:
        qkv: [B, N, (H + 2K) * D], query heads first, then keys, then values; query head h reads the keys
            and values of kv head h // G.
        num_heads: H, a multiple of K.
        num_kv_heads: K.

    Returns:
        [B, N, H * D] in the dtype of qkv, the layout the output projection wants.

    Raises:
        ValueError: the width does not divide into heads.
    """
    width = qkv.shape[-1]
    if qkv.dim() != 3 or num_heads % num_kv_heads or width % (num_heads + 2 * num_kv_heads):
        raise ValueError(
            f"qkv of shape {tuple(qkv.shape)} does not hold {num_heads} query and 2 x {num_kv_heads} kv heads"
        )
    return attention_reference(qkv, num_heads, num_kv_heads)
