"""Non-causal grouped-query attention that reads the packed qkv projection without splitting or copying it.

Letters: B batch, N tokens, H query heads, K key/value heads, G = H / K query heads per kv head, D head dim.
Grouped-query attention: Ainslie et al. 2023 (arXiv:2305.13245). Online softmax: Milakov & Gimelshein 2018
(arXiv:1805.02867), tiled as in Dao et al. 2022 (arXiv:2205.14135).
"""

import math

import torch
from torch import Tensor

from kernels.backend import tl, triton, use_triton, width_tiles

KEYS = 64  # of a pass; up to 64 tokens there is one pass, and a head's keys and values are one tile
PROGRAMS = 132  # multiprocessors of an H100; with fewer programs of 64 queries than that, a program takes 16
MAX_HEAD_DIM = 128


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


@triton.jit
def _attention_kernel(
    qkv,  # [B, N, (H + 2K) * D]
    out,  # [B, N, H * D]
    N: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    MAIN: tl.constexpr,  # head dim as main and tail tile
    TAIL: tl.constexpr,
    QUERIES: tl.constexpr,  # rows of a program
    KEYS: tl.constexpr,  # columns of a pass; all of them where KEYS >= N
    SCALE: tl.constexpr,  # log2(e) / sqrt(D): exp2 is the hardware's exponential
    PRECISION: tl.constexpr,
):
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)  # [QUERIES]
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    WIDTH: tl.constexpr = (H + 2 * K) * D
    rows = qkv + image * N * WIDTH
    kv_head = H + head // (H // K)  # of the keys; the values are K heads further on

    q, q_tail = _tiles(rows + head * D, query, WIDTH, N, D, MAIN, TAIL)  # [QUERIES, MAIN], [QUERIES, TAIL]
    if KEYS >= N:
        key = tl.arange(0, KEYS)
        k, k_tail = _tiles(rows + kv_head * D, key, WIDTH, N, D, MAIN, TAIL)
        v, v_tail = _tiles(rows + (kv_head + K) * D, key, WIDTH, N, D, MAIN, TAIL)
        scores = _scores(q, q_tail, k, k_tail, key, N, KEYS, TAIL, SCALE, PRECISION)
        weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
        total = tl.sum(weights, 1)
        weights = weights.to(v.dtype)
        result = tl.dot(weights, v, input_precision=PRECISION)
        result_tail = tl.dot(weights, v_tail, input_precision=PRECISION) if TAIL > 0 else result
    else:
        largest = tl.full([QUERIES], float("-inf"), tl.float32)
        total = tl.zeros([QUERIES], tl.float32)
        result = tl.zeros([QUERIES, MAIN], tl.float32)
        result_tail = tl.zeros([QUERIES, TAIL if TAIL > 0 else MAIN], tl.float32)
        for start in range(0, N, KEYS):
            key = start + tl.arange(0, KEYS)
            k, k_tail = _tiles(rows + kv_head * D, key, WIDTH, N, D, MAIN, TAIL)
            v, v_tail = _tiles(rows + (kv_head + K) * D, key, WIDTH, N, D, MAIN, TAIL)
            scores = _scores(q, q_tail, k, k_tail, key, N, KEYS, TAIL, SCALE, PRECISION)
            grown = tl.maximum(largest, tl.max(scores, 1))
            shrink = tl.exp2(largest - grown)  # rescales the sums so far to the new maximum
            weights = tl.exp2(scores - grown[:, None])
            total = total * shrink + tl.sum(weights, 1)
            weights = weights.to(v.dtype)
            result = tl.dot(weights, v, result * shrink[:, None], input_precision=PRECISION)
            if TAIL > 0:
                result_tail = tl.dot(weights, v_tail, result_tail * shrink[:, None], input_precision=PRECISION)
            largest = grown

    out_head = out + image * N * H * D + head * D
    _store(out_head, query, 0, result / total[:, None], H * D, N, D, MAIN)
    if TAIL > 0:
        _store(out_head, query, MAIN, result_tail / total[:, None], H * D, N, D, TAIL)


@triton.jit
def _tiles(
    head, token, WIDTH: tl.constexpr, N: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr
):
    """One head's rows of the given tokens as main and tail tile; 0 beyond the last token or column."""
    column = tl.arange(0, MAIN)[None, :]
    row_ptrs = head + token[:, None] * WIDTH
    main = tl.load(row_ptrs + column, mask=(token[:, None] < N) & (column < D), other=0.0)
    tail = main
    if TAIL > 0:
        column = MAIN + tl.arange(0, TAIL)[None, :]
        tail = tl.load(row_ptrs + column, mask=(token[:, None] < N) & (column < D), other=0.0)
    return main, tail


@triton.jit
def _scores(
    q,
    q_tail,
    k,
    k_tail,
    key,
    N: tl.constexpr,
    KEYS: tl.constexpr,
    TAIL: tl.constexpr,
    SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """q kT * SCALE [QUERIES, KEYS] in float32; -inf for keys beyond the last token."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if TAIL > 0:
        scores = tl.dot(q_tail, tl.trans(k_tail), scores, input_precision=PRECISION)
    scores *= SCALE
    if N % KEYS != 0:
        scores = tl.where(key[None, :] < N, scores, float("-inf"))
    return scores


@triton.jit
def _store(
    head,
    token,
    FIRST: tl.constexpr,
    tile,
    WIDTH: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = FIRST + tl.arange(0, COLUMNS)[None, :]
    mask = (token[:, None] < N) & (column < D)
    tl.store(head + token[:, None] * WIDTH + column, tile.to(head.dtype.element_ty), mask=mask)


def _launch(qkv: Tensor, num_heads: int, num_kv_heads: int, head_dim: int) -> Tensor:
    B, N, _ = qkv.shape
    out = torch.empty(B, N, num_heads * head_dim, dtype=qkv.dtype, device=qkv.device)
    queries, warps = _tile_rows(B * num_heads, N, head_dim, qkv.dtype)
    main, tail = width_tiles(head_dim, smallest=16)  # the smallest tile of the tensor cores
    _attention_kernel[(triton.cdiv(N, queries), num_heads, B)](
        qkv.contiguous(),
        out,
        N=N,
        H=num_heads,
        K=num_kv_heads,
        D=head_dim,
        MAIN=main,
        TAIL=tail,
        QUERIES=queries,
        KEYS=KEYS,
        SCALE=math.log2(math.e) * head_dim**-0.5,
        PRECISION="ieee",  # no TF32 for float32; without effect on 16-bit products
        num_warps=warps,
        num_stages=2,
    )
    return out


def _tile_rows(heads: int, tokens: int, head_dim: int, dtype: torch.dtype) -> tuple[int, int]:
    """Queries and warps of a program: tiles fit into registers, and each access moves 16 bytes a thread."""
    if dtype == torch.float32:
        return 32, (8 if head_dim > 64 else 4)
    if heads * triton.cdiv(tokens, 64) >= PROGRAMS:
        return 64, 4
    return 16, (2 if head_dim > 64 else 1)


def attention(qkv: Tensor, num_heads: int, num_kv_heads: int) -> Tensor:
    """Attention over one packed projection.

    The kernel takes head dims that are multiples of 8, up to 128; for others the reference runs on every device.

    Args:
        qkv: [B, N, (H + 2K) * D], query heads first, then keys, then values; query head h reads the keys
            and values of kv head h // G.
        num_heads: H, a multiple of K.
        num_kv_heads: K.

    Returns:
        [B, N, H * D] in the dtype of qkv, which is the input layout of the output projection.

    Raises:
        ValueError: the width does not divide into heads.
    """
    width = qkv.shape[-1]
    if qkv.dim() != 3 or num_heads % num_kv_heads or width % (num_heads + 2 * num_kv_heads):
        raise ValueError(
            f"qkv of shape {tuple(qkv.shape)} does not hold {num_heads} query and 2 x {num_kv_heads} kv heads"
        )
    head_dim = width // (num_heads + 2 * num_kv_heads)
    if use_triton(qkv) and head_dim % 8 == 0 and head_dim <= MAX_HEAD_DIM:
        return _launch(qkv, num_heads, num_kv_heads, head_dim)
    return attention_reference(qkv, num_heads, num_kv_heads)
