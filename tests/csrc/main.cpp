// Every kernel of csrc on small odd shapes, against plain loops in double. Meant to be built with sanitizers.
#include "check.h"

int main() {
    check_gae();
    check_shaping();
    check_moments_and_whitening();
    check_ppo_loss();
    check_linear_logprobs();
    check_decode();
    check_sample();
    check_layers();
    check_lora_linear();
    check_cuda();
    std::puts("all kernels agree");
}
