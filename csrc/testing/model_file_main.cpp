// Reads models from files with a flipped bit or two in what says where things are, signed as if they were meant so, for
// the sanitizers to watch.  Prints how many of them ended as they should: read or refused.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <vector>

#include "cpu/model_file.hpp"

namespace {

std::uint32_t crc32(const std::vector<char>& bytes, std::size_t count) {
    std::uint32_t sum = ~0u;
    for (std::size_t k = 0; k < count; ++k) {
        sum ^= static_cast<unsigned char>(bytes[k]);
        for (int bit = 0; bit < 8; ++bit) sum = (sum >> 1) ^ (sum & 1 ? 0xEDB88320u : 0);
    }
    return ~sum;
}

}  // namespace

int main(int, char** arguments) {
    std::ifstream file(arguments[1], std::ios::binary);
    const std::vector<char> whole((std::istreambuf_iterator<char>(file)), {});
    std::uint32_t entries;
    std::memcpy(&entries, &whole[12], sizeof entries);
    const std::size_t head = 24, table = 64 * entries, sizes = 2048;  // these are the first arrays
    std::mt19937 rng(7);
    int right = 0;
    for (int run = 0; run < 1000; ++run) {
        std::vector<char> bytes = whole;
        if (run)  // the first is sound
            for (int flip = 0; flip <= run % 2; ++flip) bytes[8 + rng() % (head - 8 + table + sizes)] ^= 1 << rng() % 8;
        const std::uint32_t sum = crc32(bytes, bytes.size() - sizeof sum);
        std::memcpy(&bytes[bytes.size() - sizeof sum], &sum, sizeof sum);
        std::ofstream("changed", std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
        try {
            const mdtrajnet::Model model("changed");
            ++right;
        } catch (const std::runtime_error&) {
            right += run != 0;
        }
    }
    std::printf("%d of 1000 right\n", right);
}
