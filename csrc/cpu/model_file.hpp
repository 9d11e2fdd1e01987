// A model in one file.  mdtrajnet_fast/md/export.py writes it and says what is in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/engine.hpp"

namespace mdtrajnet {

// Arrays by their names, in memory.
class ModelFile {
  public:
    // Throws std::runtime_error for a file that cannot be read, is damaged or of another version.
    explicit ModelFile(const std::string& path);

    // Those of a name.  All throw std::runtime_error where it is not there as asked for.
    template <class T>
    std::vector<T> all(const std::string& name) const;
    template <class T>
    T one(const std::string& name) const {
        return *array<T>(name, 1);
    }
    template <class T>
    T* array(const std::string& name, std::int64_t count) const;
    bool is(const std::string& name, const char* type) const;

    [[noreturn]] void refuse(const std::string& why) const;

  private:
    struct Entry {
        char name[40], type[8];
        std::uint64_t offset, count;
    };
    struct alignas(64) Line {
        char bytes[64];
    };
    const Entry& entry(const std::string& name) const;
    char* bytes() const { return const_cast<char*>(lines_.data()->bytes); }

    std::string path_;
    std::vector<Line> lines_;
    std::vector<Entry> entries_;
};

// What a rollout needs to know.
class Model {
  public:
    explicit Model(const std::string& path);

    const Predictor& predictor() const { return *predictor_; }

    std::vector<std::int64_t> species;  // atomic numbers, in the order of the embedding
    Rules rules;
    double window;                                           // its own, fs
    double symplectic;                                       // that of its window potentials, fs; 0 without them
    double farthest;                                         // coordinates that are still sensible, Å
    double energy_rate;                                      // the default of reversible windows, 1/fs
    double symplectic_energy_rate, symplectic_energy_every;  // that of symplectic ones; fs from one pull to the next
    double settling;  // fs from the start, over which the energy to keep is a mean

  private:
    template <class T>
    PredictorParts parts() const;

    ModelFile file_;
    std::unique_ptr<const Predictor> predictor_;  // has addresses of the file's arrays
};

}  // namespace mdtrajnet
