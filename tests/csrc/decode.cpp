#include <algorithm>
#include <cstring>

#include "check.h"
#include "decode/decoder.h"
#include "isa/kernels.h"

namespace decode = rlhf::decode;

namespace {

using rlhf::Element;
using Row = std::vector<double>;

struct Sizes {
    std::int64_t hidden, heads, kv_heads, dim, inner;
    double scale;  // of attention
};
constexpr Sizes kOdd{21, 6, 2, 6, 35, 0.4}, kTiled{80, 6, 2, 64, 100, 0.02}, kOneKey{24, 6, 1, 32, 20, 0.1};
constexpr std::int64_t kVocabulary = 11, kLength = 40, kLayers = 2, kRank = 3;
constexpr double kEps = 1e-5, kAdapterScale = 0.7;

float rounded(float x, Element element) {
    if (element == Element::kFloat32) return x;
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16 << 16;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Numbers that an element can hold, and their memory.
struct Values {
    Element element;
    std::vector<float> fp32;
    std::vector<std::uint16_t> bf16;

    Values(std::int64_t count, Element element, float scale) : element(element), fp32(normal<float>(count)) {
        for (float& x : fp32) {
            x = rounded(scale * x, element);
            std::uint32_t bits;
            std::memcpy(&bits, &x, sizeof bits);
            if (element == Element::kBFloat16) bf16.push_back(static_cast<std::uint16_t>(bits >> 16));
        }
    }
    void* data() { return element == Element::kFloat32 ? static_cast<void*>(fp32.data()) : bf16.data(); }
    double at(std::int64_t i) const {
        if (element == Element::kFloat32) return fp32[static_cast<std::size_t>(i)];
        const std::uint32_t bits = static_cast<std::uint32_t>(bf16[static_cast<std::size_t>(i)]) << 16;
        float x;
        std::memcpy(&x, &bits, sizeof x);
        return x;
    }
};

struct Linear {
    std::int64_t outputs, inputs;
    bool adapted;
    Values weight;
    std::vector<float> bias, a, b;

    Linear(std::int64_t outputs, std::int64_t inputs, Element element, bool adapted)
        : outputs(outputs), inputs(inputs), adapted(adapted), weight(outputs * inputs, element, 0.3f),
          bias(normal<float>(outputs)), a(normal<float>(kRank * inputs)), b(normal<float>(outputs * kRank)) {
        for (float& x : a) x = rounded(0.3f * x, element);
        for (float& x : b) x = rounded(0.3f * x, element);
    }
    decode::LinearSource source() {
        return {weight.data(), outputs, inputs, inputs, bias.data(), adapted ? a.data() : nullptr,
                adapted ? b.data() : nullptr, adapted ? kRank : 0, static_cast<float>(kAdapterScale)};
    }
    Row operator()(const Row& x) const {
        Row y(bias.begin(), bias.end());
        for (std::int64_t n = 0; n < outputs; ++n) {
            auto& out = y[static_cast<std::size_t>(n)];
            for (std::int64_t k = 0; k < inputs; ++k) out += weight.at(n * inputs + k) * x[static_cast<std::size_t>(k)];
            for (std::int64_t r = 0; adapted && r < kRank; ++r) {
                double inner = 0;
                for (std::int64_t k = 0; k < inputs; ++k) {
                    inner += a[static_cast<std::size_t>(r * inputs + k)] * x[static_cast<std::size_t>(k)];
                }
                out += kAdapterScale * inner * b[static_cast<std::size_t>(n * kRank + r)];
            }
        }
        return y;
    }
};

Row normed(const double* x, const std::vector<float>& weight) {
    double squares = 0;
    for (std::size_t i = 0; i < weight.size(); ++i) squares += x[i] * x[i];
    Row y;
    for (std::size_t i = 0; i < weight.size(); ++i) {
        y.push_back(x[i] / std::sqrt(squares / static_cast<double>(weight.size()) + kEps) * weight[i]);
    }
    return y;
}

struct Layer {
    Linear q, k, v, o, gate, up, down;
    std::vector<float> attention_norm, mlp_norm, q_norm, k_norm;
    std::int64_t window;

    Layer(const Sizes& s, Element e, bool adapted, bool head_norms, std::int64_t window)
        : q(s.heads * s.dim, s.hidden, e, adapted), k(s.kv_heads * s.dim, s.hidden, e, false),
          v(s.kv_heads * s.dim, s.hidden, e, adapted), o(s.hidden, s.heads * s.dim, e, adapted),
          gate(s.inner, s.hidden, e, adapted), up(s.inner, s.hidden, e, false), down(s.hidden, s.inner, e, adapted),
          attention_norm(normal<float>(s.hidden)), mlp_norm(normal<float>(s.hidden)),
          q_norm(normal<float>(head_norms ? s.dim : 0)), k_norm(normal<float>(head_norms ? s.dim : 0)),
          window(window) {}
    decode::LayerSource source() {
        const auto given = [](const std::vector<float>& x) { return x.empty() ? nullptr : x.data(); };
        return {{q.source(), k.source(), v.source()}, {o.source()},   {gate.source(), up.source()},
                {down.source()},                      attention_norm.data(), mlp_norm.data(),
                given(q_norm),                        given(k_norm),  window};
    }
};

struct Angles {
    std::int64_t dim;
    std::vector<float> cos, sin;
    explicit Angles(std::int64_t dim) : dim(dim) {
        for (std::int64_t i = 0; i < kLength * dim; ++i) {
            const double angle = static_cast<double>(i / dim) / static_cast<double>(1 + i % (dim / 2));
            cos.push_back(static_cast<float>(std::cos(angle)));
            sin.push_back(static_cast<float>(std::sin(angle)));
        }
    }
    Row rotated(const double* x, const std::vector<float>& norm, std::int64_t position) const {
        const Row source = norm.empty() ? Row(x, x + dim) : normed(x, norm);
        const auto size = static_cast<std::size_t>(dim), half = size / 2;
        Row y;
        for (std::size_t d = 0; d < size; ++d) {
            const std::size_t at = static_cast<std::size_t>(position) * size + d;
            y.push_back(source[d] * cos[at] + (d < half ? -source[d + half] : source[d - half]) * sin[at]);
        }
        return y;
    }
};

// Attention of row `row`, whose own key and value are not in the cache yet.
Row attention(const Sizes& s, const Layer& l, const Angles& angles, const Row& x, const Values& keys,
              const Values& values, std::int64_t row, std::int64_t position) {
    const Row q = l.q(x), k = l.k(x), v = l.v(x);
    Row out;
    for (std::int64_t head = 0; head < s.heads; ++head) {
        const std::int64_t kv = head / (s.heads / s.kv_heads), begin = (row * s.kv_heads + kv) * kLength * s.dim;
        const Row query = angles.rotated(q.data() + head * s.dim, l.q_norm, position);
        const Row own = angles.rotated(k.data() + kv * s.dim, l.k_norm, position);
        Row mixed(static_cast<std::size_t>(s.dim));
        double total = 0;
        const std::int64_t first = l.window > 0 ? std::max<std::int64_t>(0, position + 1 - l.window) : 0;
        for (std::int64_t p = first; p <= position; ++p) {
            const auto entry = [&](const Values& cache, const double* mine, std::size_t d) {
                return p == position ? mine[d] : cache.at(begin + p * s.dim + static_cast<std::int64_t>(d));
            };
            double score = 0;
            for (std::size_t d = 0; d < mixed.size(); ++d) score += query[d] * entry(keys, own.data(), d);
            const double weight = std::exp(s.scale * score);
            total += weight;
            for (std::size_t d = 0; d < mixed.size(); ++d) mixed[d] += weight * entry(values, v.data() + kv * s.dim, d);
        }
        for (const double m : mixed) out.push_back(m / total);
    }
    return l.o(out);
}

Row feed_forward(const Layer& l, const Row& x) {
    const Row gate = l.gate(x), up = l.up(x);
    Row inner;
    for (std::size_t i = 0; i < gate.size(); ++i) inner.push_back(gate[i] / (1 + std::exp(-gate[i])) * up[i]);
    return l.down(inner);
}

void add(Row& x, const Row& y) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

void check(const Sizes& s, std::int64_t rows, const rlhf::Kernels* level, Element element, bool adapted,
           bool head_norms, std::int64_t window) {
    std::vector<Layer> layers;
    for (std::int64_t l = 0; l < kLayers; ++l) {
        layers.emplace_back(s, element, adapted, head_norms, l == 0 ? window : 0);
    }
    const auto final_norm = normal<float>(s.hidden);
    const Angles angles(s.dim);
    Values embedding(kVocabulary * s.hidden, element, 1);
    std::vector<Values> keys, values;
    std::vector<void*> key_data, value_data;
    for (std::int64_t l = 0; l < kLayers; ++l) {
        keys.emplace_back(rows * s.kv_heads * kLength * s.dim, element, 1.0f);
        values.emplace_back(rows * s.kv_heads * kLength * s.dim, element, 1.0f);
    }
    std::vector<std::int64_t> tokens, lengths;
    std::vector<Row> expected;
    for (std::int64_t row = 0; row < rows; ++row) {
        tokens.push_back(row % kVocabulary);
        lengths.push_back(row == 0 ? kLength - 1 : (row * 7) % kLength);
        Row x;
        for (std::int64_t i = 0; i < s.hidden; ++i) x.push_back(embedding.at(tokens.back() * s.hidden + i));
        for (std::size_t l = 0; l < kLayers; ++l) {
            const Row attended = normed(x.data(), layers[l].attention_norm);
            add(x, attention(s, layers[l], angles, attended, keys[l], values[l], row, lengths.back()));
            add(x, feed_forward(layers[l], normed(x.data(), layers[l].mlp_norm)));
        }
        expected.push_back(normed(x.data(), final_norm));
    }
    decode::Decoder decoder(
        {s.hidden, s.heads, s.kv_heads, s.dim, s.inner, static_cast<float>(kEps), static_cast<float>(s.scale)},
        final_norm.data(), *level, element);
    for (std::size_t l = 0; l < kLayers; ++l) {
        decoder.add_layer(layers[l].source());
        key_data.push_back(keys[l].data()), value_data.push_back(values[l].data());
    }
    Values hidden(rows * s.hidden, element, 0);
    decoder.step({rows, tokens.data(), lengths.data(), embedding.data(), angles.cos.data(), angles.sin.data(),
                  key_data.data(), value_data.data(), kLength, hidden.data(), 2});
    const double roundings = element == Element::kFloat32 ? 300 : 6e5;  // of float32; one of bf16 is 65536
    for (std::int64_t i = 0; i < rows * s.hidden; ++i) {
        expect_near<float>("hidden", hidden.at(i), expected[static_cast<std::size_t>(i / s.hidden)]
                                                           [static_cast<std::size_t>(i % s.hidden)], 3, roundings);
    }
}

// Far below 0 silu is 0, however large the gate and up: in whole vectors and behind them.
void check_huge_gates(const rlhf::Kernels* level, Element element) {
    const std::vector<float> gates{-100, -1e4f, -1e30f, -3e38f, -0.5f, 0.5f, 1e4f, 1e30f};
    for (const std::size_t copies : {1, 5}) {
        std::vector<float> gate;
        for (std::size_t i = 0; i < copies; ++i) gate.insert(gate.end(), gates.begin(), gates.end());
        gate.push_back(-1e4f);
        const std::vector<float> up(gate.size(), 1e6f);
        std::vector<float> out(gate.size());
        level->decode[element].swiglu(gate.data(), up.data(), static_cast<std::int64_t>(gate.size()), out.data());
        for (std::size_t i = 0; i < gate.size(); ++i) {
            const double silu = gate[i] / (1 + std::exp(-double(gate[i])));
            expect_near<float>("silu", out[i] / 1e6, silu, std::max(std::abs(silu), 1e-30));
        }
    }
}

}  // namespace

void check_decode() {
    for (const rlhf::Kernels* level : rlhf::available_kernels()) {
        for (const auto element : {Element::kFloat32, Element::kBFloat16}) {
            check_huge_gates(level, element);
            for (const std::int64_t rows : {1, 3, 9, 16, 33}) {
                for (const Sizes& sizes : {kOdd, kTiled, kOneKey}) {
                    check(sizes, rows, level, element, rows > 1, rows % 3 == 0, rows - 1);
                }
            }
        }
    }
}
