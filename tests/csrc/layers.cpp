#include "layers/layers.h"

#include <algorithm>

#include "check.h"
#include "common.h"
#include "isa/kernels.h"

namespace layers = rlhf::layers;

namespace {

using Column = std::vector<float>;

rlhf::Compute on(const rlhf::Kernels* level) { return {level, rlhf::Element::kFloat32, 2}; }

void check_rows(const rlhf::Kernels* level, std::int64_t rows, std::int64_t width) {
    const auto x = normal<float>(rows * width), weight = normal<float>(width), dy = normal<float>(rows * width);
    Column y(x.size()), rstd(static_cast<std::size_t>(rows)), dx(x.size()), d_up(x.size());
    layers::rms_norm({x.data(), weight.data(), y.data(), rstd.data(), width, 0.1f}, rows, on(level));
    layers::rms_norm_backward({x.data(), weight.data(), dy.data(), rstd.data(), dx.data(), width}, rows, on(level));
    for (std::int64_t row = 0; row < rows; ++row) {
        const float *xs = x.data() + row * width, *ds = dy.data() + row * width;
        double squares = 0, dot = 0;
        for (std::int64_t i = 0; i < width; ++i) {
            squares += double(xs[i]) * xs[i];
            dot += double(xs[i]) * weight[i] * ds[i];
        }
        const double r = 1 / std::sqrt(squares / width + 0.1f);
        for (std::int64_t i = 0; i < width; ++i) {
            expect_near<float>("rms norm", y[row * width + i], xs[i] * r * weight[i]);
            const double gradient = r * (weight[i] * ds[i] - xs[i] * r * r * dot / width);
            expect_near<float>("d rms norm", dx[row * width + i], gradient, 8);
        }
    }
    layers::swiglu({x.data(), dy.data(), y.data()}, rows * width, on(level));
    layers::swiglu_backward({x.data(), dy.data(), x.data(), dx.data(), d_up.data()}, rows * width, on(level));
    for (std::size_t i = 0; i < x.size(); ++i) {
        const double open = 1 / (1 + std::exp(-double(x[i])));
        expect_near<float>("swiglu", y[i], x[i] * open * dy[i]);
        expect_near<float>("d_gate", dx[i], x[i] * dy[i] * open * (1 + x[i] * (1 - open)), 8);
        expect_near<float>("d_up", d_up[i], x[i] * x[i] * open, 8);
    }
}

void check_rotary(const rlhf::Kernels* level, std::int64_t tokens, std::int64_t heads, std::int64_t head_dim) {
    const std::int64_t half = head_dim / 2;
    const auto x = normal<float>(tokens * heads * head_dim), angles = normal<float>(tokens * half);
    Column cos(angles.size()), sin(angles.size()), y(x.size()), back(x.size());
    for (std::size_t i = 0; i < angles.size(); ++i) cos[i] = std::cos(angles[i]), sin[i] = std::sin(angles[i]);
    const auto turn = [&](const Column& from, Column& to, float direction) {
        layers::rotary({from.data(), cos.data(), sin.data(), to.data(), heads * head_dim, head_dim, half, heads,
                        head_dim, direction},
                       tokens, on(level));
    };
    turn(x, y, 1);
    turn(y, back, -1);
    for (std::size_t i = 0; i < x.size(); ++i) expect_near<float>("rotary and back", back[i], x[i]);
    for (std::int64_t t = 0; t < tokens; ++t) {
        const double low = x[t * heads * head_dim], high = x[t * heads * head_dim + half];
        expect_near<float>("rotary", y[t * heads * head_dim], low * cos[t * half] - high * sin[t * half]);
    }
}

struct AttentionCase {
    std::int64_t heads, kv_heads, head_dim, window;
    std::vector<std::int64_t> offsets;
};

// One query at a time in double
void expect_attention(const AttentionCase& c, const Column& q, const Column& k, const Column& v, const Column& d_out,
                      const Column& out, const Column& dq, const Column& dk, const Column& dv) {
    const std::int64_t d = c.head_dim, group = c.heads / c.kv_heads;
    std::vector<double> dks(k.size()), dvs(v.size());
    for (std::size_t b = 0; b + 1 < c.offsets.size(); ++b) {
        for (std::int64_t i = c.offsets[b]; i < c.offsets[b + 1]; ++i) {
            for (std::int64_t h = 0; h < c.heads; ++h) {
                const std::int64_t at = (i * c.heads + h) * d;
                const std::int64_t first = c.window > 0 ? std::max(c.offsets[b], i - c.window + 1) : c.offsets[b];
                const auto key = [&](std::int64_t j) { return (j * c.kv_heads + h / group) * d; };
                std::vector<double> share, slope;
                double total = 0, dot = 0;
                for (std::int64_t j = first; j <= i; ++j) {
                    double z = 0, s = 0;
                    for (std::int64_t n = 0; n < d; ++n) {
                        z += 0.5 * q[at + n] * k[key(j) + n];
                        s += double(d_out[at + n]) * v[key(j) + n];
                    }
                    share.push_back(std::exp(z));
                    slope.push_back(s);
                    total += share.back();
                }
                for (std::size_t j = 0; j < share.size(); ++j) dot += (share[j] /= total) * slope[j];
                for (std::int64_t n = 0; n < d; ++n) {
                    double o = 0, g = 0;
                    for (std::size_t j = 0; j < share.size(); ++j) {
                        const std::int64_t row = key(first + static_cast<std::int64_t>(j)) + n;
                        const double ds = 0.5 * share[j] * (slope[j] - dot);
                        o += share[j] * v[row];
                        g += ds * k[row];
                        dks[row] += ds * q[at + n];
                        dvs[row] += share[j] * d_out[at + n];
                    }
                    expect_near<float>("attention", out[at + n], o, 8);
                    expect_near<float>("dq", dq[at + n], g, 8);
                }
            }
        }
    }
    for (std::size_t i = 0; i < k.size(); ++i) {
        expect_near<float>("dk", dk[i], dks[i], 64);
        expect_near<float>("dv", dv[i], dvs[i], 64);
    }
}

layers::Heads rows_of(const void* x, std::int64_t heads, std::int64_t head_dim) {
    return {x, heads * head_dim, head_dim};
}

void check_attention(const rlhf::Kernels* level, const AttentionCase& c) {
    const std::int64_t tokens = c.offsets.back(), size = tokens * c.heads * c.head_dim;
    const std::int64_t kv_size = tokens * c.kv_heads * c.head_dim;
    const auto q = normal<float>(size), d_out = normal<float>(size);
    const auto k = normal<float>(kv_size), v = normal<float>(kv_size);
    Column out(q.size()), dq(q.size()), dk(k.size()), dv(v.size());
    Column log_sum(static_cast<std::size_t>(tokens * c.heads));
    const layers::Attention a{rows_of(q.data(), c.heads, c.head_dim),
                              rows_of(k.data(), c.kv_heads, c.head_dim),
                              rows_of(v.data(), c.kv_heads, c.head_dim),
                              c.heads,
                              c.kv_heads,
                              c.head_dim,
                              tokens,
                              0.5f,
                              c.window};
    layers::attention({a, out.data(), log_sum.data()}, c.offsets, on(level));
    layers::attention_backward({a, rows_of(out.data(), c.heads, c.head_dim), rows_of(d_out.data(), c.heads, c.head_dim),
                                log_sum.data(), dq.data(), dk.data(), dv.data()},
                               c.offsets, on(level));
    expect_attention(c, q, k, v, d_out, out, dq, dk, dv);
}

// bf16 takes other packing: ones in, ones out, and no read beyond the ends
void check_bf16_attention(const rlhf::Kernels* level, const AttentionCase& c) {
    const std::int64_t tokens = c.offsets.back();
    const std::uint16_t one = rlhf::to_bfloat16(1.0f);
    const std::vector<std::uint16_t> q(static_cast<std::size_t>(tokens * c.heads * c.head_dim), one);
    const std::vector<std::uint16_t> k(static_cast<std::size_t>(tokens * c.kv_heads * c.head_dim), one);
    std::vector<std::uint16_t> out(q.size()), dq(q.size()), dk(k.size()), dv(k.size());
    Column log_sum(static_cast<std::size_t>(tokens * c.heads));
    const layers::Heads queries = rows_of(q.data(), c.heads, c.head_dim);
    const layers::Heads keys = rows_of(k.data(), c.kv_heads, c.head_dim);
    const layers::Attention a{queries, keys, keys, c.heads, c.kv_heads, c.head_dim, tokens, 0.01f, c.window};
    const rlhf::Compute compute{level, rlhf::Element::kBFloat16, 2};
    layers::attention({a, out.data(), log_sum.data()}, c.offsets, compute);
    const layers::Heads outs = rows_of(out.data(), c.heads, c.head_dim);
    layers::attention_backward({a, outs, queries, log_sum.data(), dq.data(), dk.data(), dv.data()}, c.offsets, compute);
    for (const std::uint16_t entry : out) expect_near<float>("bf16 attention", rlhf::to_float(entry), 1, 1, 65536);
    double sum = 0;  // each query hands its gradient of ones out to the values that it sees
    for (const std::uint16_t entry : dv) sum += rlhf::to_float(entry);
    expect_near<float>("bf16 dv", sum / static_cast<double>(q.size()), 1, 1, 65536);
}

}  // namespace

void check_layers() {
    const AttentionCase cases[] = {{2, 1, 8, 0, {0, 1, 1, 50}},
                                   {3, 3, 5, 7, {0, 61}},
                                   {4, 2, 33, 0, {0, 17, 48}},
                                   {1, 1, 64, 49, {0, 100}},
                                   {6, 1, 40, 33, {0, 35, 99}}};
    for (const rlhf::Kernels* level : rlhf::available_kernels()) {
        for (const std::int64_t width : {1, 7, 16, 37}) check_rows(level, 5, width);
        for (const std::int64_t head_dim : {2, 10, 32, 64}) check_rotary(level, 3, 2, head_dim);
        for (const AttentionCase& c : cases) {
            check_attention(level, c);
            check_bf16_attention(level, c);
        }
    }
}
