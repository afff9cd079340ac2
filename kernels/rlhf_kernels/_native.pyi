openmp: bool

def gae_float32(
    rewards: int,
    values: int,
    returns: int,
    cu: int,
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
    cu: int,
    bootstrap: int,
    sequences: int,
    gamma: float,
    gamma_lam: float,
    threads: int,
) -> None: ...
