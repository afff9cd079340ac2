openmp: bool

def gae_float32(
    rewards: int,
    values: int,
    returns: int,
    cu_responses: int,
    bootstrap: int,
    sequences: int,
    gamma: float,
    gamma_lam: float,
    threads: int,
) -> None: ...
def gae_float64(
    rewards: int,
    values: int,
    returns: int,
    cu_responses: int,
    bootstrap: int,
    sequences: int,
    gamma: float,
    gamma_lam: float,
    threads: int,
) -> None: ...
def shape_rewards_float32(
    rewards: int,
    kl: int,
    slots: int,
    scores: int,
    score_index: int,
    sequences: int,
    kl_coef: float,
    threads: int,
) -> None: ...
def shape_rewards_float64(
    rewards: int,
    kl: int,
    slots: int,
    scores: int,
    score_index: int,
    sequences: int,
    kl_coef: float,
    threads: int,
) -> None: ...
def moments_float32(
    x: int,
    mask: int,
    entries: int,
    out: int,
    threads: int,
) -> None: ...
def moments_float64(
    x: int,
    mask: int,
    entries: int,
    out: int,
    threads: int,
) -> None: ...
def whiten_float32(
    x: int,
    mask: int,
    entries: int,
    moments: int,
    shift_mean: bool,
    ddof: int,
    eps: float,
    threads: int,
) -> None: ...
def whiten_float64(
    x: int,
    mask: int,
    entries: int,
    moments: int,
    shift_mean: bool,
    ddof: int,
    eps: float,
    threads: int,
) -> None: ...
def ppo_loss_float32(
    *,
    logprobs: int,
    old_logprobs: int,
    advantages: int,
    values: int,
    old_values: int,
    returns: int,
    entropy: int,
    weight: int,
    mask: int,
    value_mask: int,
    slots: int,
    cliprange: float,
    cliprange_value: float,
    vf_coef: float,
    entropy_coef: float,
    dual_clip: float,
    log_ratio_clamp: float,
    denominator: float | None,
    value_denominator: float | None,
    metrics: int,
    d_logprobs: int,
    d_values: int,
    d_entropy: int,
    level: str,
    threads: int,
) -> None: ...
def ppo_loss_float64(
    *,
    logprobs: int,
    old_logprobs: int,
    advantages: int,
    values: int,
    old_values: int,
    returns: int,
    entropy: int,
    weight: int,
    mask: int,
    value_mask: int,
    slots: int,
    cliprange: float,
    cliprange_value: float,
    vf_coef: float,
    entropy_coef: float,
    dual_clip: float,
    log_ratio_clamp: float,
    denominator: float | None,
    value_denominator: float | None,
    metrics: int,
    d_logprobs: int,
    d_values: int,
    d_entropy: int,
    level: str,
    threads: int,
) -> None: ...
def levels() -> list[str]: ...
def scratch_held() -> int: ...
def scratch_peak() -> int: ...
def restart_scratch_peak() -> None: ...

class Scoring:
    def __init__(
        self,
        *,
        hidden: int,
        hidden_stride: int,
        weight: int,
        weight_stride: int,
        bias: int,
        labels: int,
        rows: int,
        vocabulary: int,
        hidden_size: int,
        temperature: float,
        softcap: float,
        bf16: bool,
        level: str,
        threads: int,
    ) -> None: ...

def linear_logprobs(scoring: Scoring, logprobs: int, entropy: int, max: int, log_sum: int) -> None: ...
def linear_logprobs_directions(
    scoring: Scoring, logprobs: int, entropy: int, max: int, log_sum: int, directions: int
) -> None: ...
def linear_logprobs_backward(
    scoring: Scoring,
    logprobs: int,
    entropy: int,
    max: int,
    log_sum: int,
    d_logprobs: int,
    d_entropy: int,
    d_hidden: int,
) -> None: ...
def policy_reference_logprobs(
    scoring: Scoring,
    ref_hidden: int,
    ref_hidden_stride: int,
    ref_weight: int,
    ref_weight_stride: int,
    logprobs: int,
    ref_logprobs: int,
    kl: int,
) -> None: ...

Strided = tuple[int, int, int]  # address, token stride, head stride

class LayerCompute:
    def __init__(self, level: str, bf16: bool, threads: int) -> None: ...

class Attention:
    def __init__(
        self,
        q: Strided,
        k: Strided,
        v: Strided,
        heads: int,
        kv_heads: int,
        head_dim: int,
        tokens: int,
        scale: float,
        window: int,
    ) -> None: ...

def rms_norm(
    x: int, weight: int, y: int, rstd: int, rows: int, width: int, eps: float, on: LayerCompute, /
) -> None: ...
def rms_norm_backward(
    x: int, weight: int, dy: int, rstd: int, dx: int, rows: int, width: int, on: LayerCompute, /
) -> None: ...
def swiglu(gate: int, up: int, y: int, entries: int, on: LayerCompute, /) -> None: ...
def swiglu_backward(gate: int, up: int, dy: int, d_gate: int, d_up: int, entries: int, on: LayerCompute, /) -> None: ...
def rotary(
    x: Strided,
    cos: int,
    sin: int,
    angle_stride: int,
    y: int,
    tokens: int,
    heads: int,
    head_dim: int,
    direction: float,
    on: LayerCompute,
    /,
) -> None: ...
def packed_attention(a: Attention, out: int, log_sum: int, offsets: list[int], on: LayerCompute, /) -> None: ...
def packed_attention_backward(
    a: Attention,
    out: Strided,
    d_out: Strided,
    log_sum: int,
    dq: int,
    dk: int,
    dv: int,
    offsets: list[int],
    on: LayerCompute,
    /,
) -> None: ...

class LinearSource:
    def __init__(
        self,
        *,
        weight: int,
        outputs: int,
        inputs: int,
        stride: int,
        bias: int,
        a: int,
        b: int,
        rank: int,
        scale: float,
    ) -> None: ...

class Decoder:
    nbytes: int
    def __init__(
        self,
        *,
        hidden_size: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        intermediate_size: int,
        eps: float,
        attention_scale: float,
        final_norm: int,
        bf16: bool,
        level: str,
    ) -> None: ...
    def add_layer(
        self,
        *,
        qkv: list[LinearSource],
        o: list[LinearSource],
        gate_up: list[LinearSource],
        down: list[LinearSource],
        attention_norm: int,
        mlp_norm: int,
        q_norm: int,
        k_norm: int,
        window: int,
    ) -> None: ...
    def step(
        self,
        *,
        rows: int,
        tokens: int,
        lengths: int,
        embedding: int,
        cos: int,
        sin: int,
        keys: list[int],
        values: list[int],
        length: int,
        hidden: int,
        threads: int,
    ) -> None: ...

def sample(
    *,
    hidden: int,
    hidden_stride: int,
    weight: int,
    weight_stride: int,
    bias: int,
    seeds: int,
    steps: int,
    rows: int,
    vocabulary: int,
    hidden_size: int,
    temperature: float,
    softcap: float,
    bf16: bool,
    level: str,
    tokens: int,
    logprobs: int,
    threads: int,
) -> None: ...

class LoraAdapter:
    def __init__(self, *, a: int, b: int, scaled_a: int, rounded_b: int, rank: int, scale: float) -> None: ...

class LoraGroup:
    def __init__(self, slot: int, first: int, last: int) -> None: ...

class LoraGradients:
    def __init__(self, da: int, db: int) -> None: ...

class LoraLayer:
    def __init__(
        self,
        *,
        weight: int,
        outputs: int,
        inputs: int,
        output_stride: int,
        input_stride: int,
        adapters: list[LoraAdapter],
        groups: list[LoraGroup],
        inner_stride: int,
        threads: int,
    ) -> None: ...

def lora_linear(layer: LoraLayer, x: int, bias: int, inner: int, y: int, /) -> None: ...
def lora_linear_backward(
    layer: LoraLayer, x: int, inner: int, dy: int, dx: int, gradients: list[LoraGradients], /
) -> None: ...
