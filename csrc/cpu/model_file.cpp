#include "cpu/model_file.hpp"

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>

namespace mdtrajnet {
namespace {

using std::int64_t;

constexpr char kMagic[] = "\x93MDTRAJ\n";
constexpr std::uint32_t kVersion = 4;
// No size of a model is larger: products of some of them are still numbers.
constexpr int64_t kLargest = 10000;

struct Head {
    char magic[8];
    std::uint32_t version, entries;
    std::uint64_t bytes;
};

std::uint32_t crc32(const char* bytes, std::size_t count) {
    std::array<std::uint32_t, 256> table;
    for (std::uint32_t k = 0; k < 256; ++k) {
        table[k] = k;
        for (int bit = 0; bit < 8; ++bit) table[k] = (table[k] >> 1) ^ (table[k] & 1 ? 0xEDB88320u : 0);
    }
    std::uint32_t sum = ~0u;
    for (std::size_t k = 0; k < count; ++k)
        sum = table[(sum ^ static_cast<unsigned char>(bytes[k])) & 255] ^ (sum >> 8);
    return ~sum;
}

template <class T>
constexpr const char* kType = sizeof(T) == 4          ? "<f4"
                              : std::is_integral_v<T> ? "<i8"
                                                      : "<f8";

}  // namespace

void ModelFile::refuse(const std::string& why) const { throw std::runtime_error(path_ + " " + why); }

ModelFile::ModelFile(const std::string& path) : path_(path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) refuse(std::string("cannot be opened: ") + std::strerror(errno));
    Head head{};
    file.read(reinterpret_cast<char*>(&head), sizeof head);
    if (std::memcmp(head.magic, kMagic, sizeof head.magic))
        refuse("is not a model that this library reads: write one with `mdtrajnet export MODEL FILE`");
    if (!file) refuse("ends within its head: copy or export it again");
    if (head.version != kVersion)
        refuse("is of version " + std::to_string(head.version) + ", but this library reads version " +
               std::to_string(kVersion) + ": take both the file and the library from the same mdtrajnet_fast");
    file.seekg(0, std::ios::end);
    const auto size = static_cast<std::uint64_t>(file.tellg());
    const std::uint64_t begin = sizeof head + sizeof(Entry) * std::uint64_t(head.entries);
    const std::uint64_t end = size - sizeof(std::uint32_t);
    if (size != head.bytes || size < begin + sizeof(std::uint32_t))
        refuse("has " + std::to_string(size) + " bytes, but was written with " + std::to_string(head.bytes) +
               ": copy or export it again");
    lines_.resize(size / sizeof(Line) + 1);
    file.seekg(0);
    if (!file.read(bytes(), static_cast<std::streamsize>(size))) refuse("cannot be read to its end");
    std::uint32_t sum;
    std::memcpy(&sum, bytes() + end, sizeof sum);
    if (sum != crc32(bytes(), end)) refuse("is damaged, its checksum is wrong: copy or export it again");
    const auto* first = reinterpret_cast<const Entry*>(bytes() + sizeof head);
    entries_.assign(first, first + head.entries);
    for (const Entry& x : entries_) {
        const std::uint64_t each = !std::strncmp(x.type, "<f4", sizeof x.type) ? 4 : 8;
        if (x.offset % sizeof(Line) || x.offset < begin || x.offset > end || x.count > (end - x.offset) / each)
            refuse("has arrays beyond its end: export it again");
    }
}

const ModelFile::Entry& ModelFile::entry(const std::string& name) const {
    for (const Entry& x : entries_)
        if (!std::strncmp(x.name, name.c_str(), sizeof x.name)) return x;
    refuse("lacks the array \"" + name + "\": export it again");
}

bool ModelFile::is(const std::string& name, const char* type) const {
    return !std::strncmp(entry(name).type, type, sizeof(Entry::type));
}

template <class T>
std::vector<T> ModelFile::all(const std::string& name) const {
    const auto count = static_cast<int64_t>(entry(name).count);
    const T* x = array<T>(name, count);
    return {x, x + count};
}

template <class T>
T* ModelFile::array(const std::string& name, int64_t count) const {
    const Entry& x = entry(name);
    if (!is(name, kType<T>) || x.count != static_cast<std::uint64_t>(count) || !count)
        refuse("has " + std::to_string(x.count) + " numbers of type " +
               std::string(x.type, strnlen(x.type, sizeof x.type)) + " in \"" + name + "\", expected " +
               (count ? std::to_string(count) : "some") + " of " + kType<T> + ": export it again");
    return reinterpret_cast<T*>(bytes() + x.offset);
}

Model::Model(const std::string& path) : file_(path) {
    species = file_.all<int64_t>("species");
    rules = {file_.one<double>("skin"),
             file_.one<double>("fs"),
             file_.all<double>("back"),
             file_.one<double>("most_scaled"),
             static_cast<int>(file_.one<int64_t>("newton_steps")),
             file_.one<double>("uncertain")};
    window = file_.one<double>("window");
    symplectic = file_.one<double>("symplectic_window");
    farthest = file_.one<double>("farthest");
    energy_rate = file_.one<double>("energy_rate");
    settling = file_.one<double>("settling");
    symplectic_energy_rate = file_.one<double>("symplectic_energy_rate");
    symplectic_energy_every = file_.one<double>("symplectic_energy_every");
    predictor_ = std::make_unique<Predictor>(file_.one<int64_t>("real") ? parts<double>() : parts<float>());
}

template <class T>
PredictorParts Model::parts() const {
    const auto size = [&](int64_t x) {
        if (x < 1 || x > kLargest) file_.refuse("has a size of " + std::to_string(x) + ": export it again");
        return static_cast<long>(x);
    };
    const auto sized = [&](const char* name) { return size(file_.one<int64_t>(name)); };
    const auto is = [&](const char* name) { return file_.one<int64_t>(name) != 0; };
    const long known = size(static_cast<int64_t>(species.size())), species_channels = sized("species_channels");
    const double cutoff = file_.one<double>("radial_cutoff");

    AttentionSizes z{};
    z.time_channels = sized("time_channels");
    z.scalars = species_channels + z.time_channels;
    z.centres = sized("centres");
    z.heads = sized("heads");
    z.key_channels = sized("key_channels");
    z.value_channels = sized("value_channels");
    z.cutoff = cutoff;
    z.envelope = is("envelope");
    const char* nets[2] = {"key", "value"};
    for (int net = 0; net < 2; ++net) {
        const auto hidden = file_.all<int64_t>(std::string(nets[net]) + "_hidden");
        z.layers[net] = static_cast<int>(hidden.size());
        if (hidden.empty() || hidden.size() > kMaxLayers)
            file_.refuse("has radial networks of " + std::to_string(hidden.size()) + " hidden layers, expected 1 to " +
                         std::to_string(kMaxLayers));
        for (std::size_t k = 0; k < hidden.size(); ++k) z.hidden[net][k] = size(hidden[k]);
    }

    PredictorParts parts{};
    parts.real = std::is_same_v<T, double>;
    const int64_t S = z.scalars, h = z.heads, c = z.key_channels * h, v = z.value_channels;
    const int64_t n = z.hidden[0][z.layers[0] - 1] + 1, m = z.hidden[1][z.layers[1] - 1] + 1;
    const long members = file_.one<int64_t>("members") ? sized("members") : 0, blocks = sized("blocks");
    for (long member = 0; member < members; ++member) {
        const std::string prefix = std::to_string(member) + ".";
        parts.embeddings.push_back(file_.array<T>(prefix + "embedding", known * species_channels));
        parts.members.emplace_back();
        for (long block = 0; block < blocks; ++block) {
            const std::string of = prefix + std::to_string(block) + ".";
            AttentionWeights<T> w{};
            for (int net = 0; net < 2; ++net) {
                int64_t in = z.centres + z.time_channels;
                for (int k = 0; k < z.layers[net]; ++k) {
                    const int64_t out = z.hidden[net][k];
                    const std::string layer = of + nets[net] + std::to_string(k);
                    w.layer_weight[net][k] = file_.array<T>(layer, out * in);
                    w.layer_bias[net][k] = file_.array<T>(layer + ".bias", out);
                    in = out;
                }
            }
            w.query = file_.array<T>(of + "query", S * c);
            w.key_atom = file_.array<T>(of + "key_atom", S * n * (c + 2 * h));
            w.key_edge = file_.array<T>(of + "key_edge", n * (2 * c + 4 * h));
            w.value_atom = file_.array<T>(of + "value_atom", S * m * 2 * h);
            w.value_edge = file_.array<T>(of + "value_edge", m * 6 * h);
            w.scalar_atom = file_.array<T>(of + "scalar_atom", h * m * S * v);
            w.scalar_edge = file_.array<T>(of + "scalar_edge", h * 2 * m * v);
            w.out = file_.array<T>(of + "out", h * v * S);
            parts.members.back().push_back(std::make_shared<Block>(z, w, false));
        }
    }
    parts.running = is("running");
    parts.head = {species_channels, z.time_channels, cutoff, file_.one<double>("time_cutoff"),
                  is("conserving"), is("readout"),   known};

    const auto padded = [](int64_t x) {
        constexpr int64_t whole = 64 / sizeof(T);
        return (x + whole - 1) / whole * whole;
    };
    const int64_t* sizes = file_.array<int64_t>("potential", 3);
    parts.has_potential = sizes[0] != 0;
    if (parts.has_potential) {
        const long radial = size(sizes[0]), products = size(sizes[1]), hidden = size(sizes[2]);
        parts.potential = {known, radial, products, hidden, cutoff};
        const int64_t basis = known * radial, features = basis + 3 * products, row = padded(hidden);
        const int64_t counts[] = {
            3 * basis * 2 * padded(products), known * features, features * row, known * row, hidden * row, row, row};
        for (std::size_t k = 0; k < std::size(counts); ++k)
            parts.potential_weights[k] = file_.array<T>("potential." + std::to_string(k), counts[k]);
    }

    sizes = file_.array<int64_t>("window_potentials", 5);
    const bool kicks = sizes[0] != 0;
    if (!members && !kicks) file_.refuse("has neither a network nor window potentials: export it again");
    if (kicks) {
        const long layers = size(sizes[0]), intervals = size(sizes[1]), channels = size(sizes[2]),
                   products = size(sizes[3]), hidden = size(sizes[4]);
        parts.window_potentials = {kRoles, {known, layers, intervals, channels, products, hidden, cutoff}, {}};
        const int64_t c = padded(channels), p = padded(products), h = padded(hidden), features = c + 4 * p;
        const int64_t onward = layers - 1;
        const int64_t counts[] = {layers * intervals * kRadialPowers * c,
                                  kRoles * layers * known * (c + h),
                                  onward * hidden * (c + h),
                                  onward * (c + h) * h,
                                  layers * channels * 7 * p,
                                  layers * 7 * p * c,
                                  layers * known * features,
                                  layers * features * h,
                                  layers * hidden * features,
                                  layers * hidden * h,
                                  layers * hidden * h,
                                  layers * h,
                                  kRoles * layers * h};
        for (std::size_t k = 0; k < std::size(counts); ++k)
            if (counts[k])
                parts.window_potentials.weights[k] =
                    file_.array<T>("window_potentials." + std::to_string(k), counts[k]);
    }
    return parts;
}

}  // namespace mdtrajnet
