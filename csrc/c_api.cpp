// mdtrajnet.h above the engine.  The rollout does what mdtrajnet_fast/md/rollout.py does, which says why.
#include "mdtrajnet.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/engine.hpp"
#include "cpu/model_file.hpp"
#include "cpu/subnormals.hpp"

using mdtrajnet::Method;
using std::int64_t;
using Array = std::vector<double>;

struct mdtrajnet_model {
    std::shared_ptr<const mdtrajnet::Model> it;
};

namespace {

struct Where {
    int64_t system = -1, atom = -1;  // the atom counted within the system; -1 for none
};
constexpr Where kNowhere;

// What a caller is told.
struct Trouble {
    int code;
    std::string message;
    Where where;
};

template <class... Parts>
std::string text(const Parts&... parts) {
    std::string all;
    const auto add = [&](const auto& part) {
        if constexpr (std::is_arithmetic_v<std::decay_t<decltype(part)>>) {
            char digits[32];
            std::snprintf(digits, sizeof digits, "%.12g", static_cast<double>(part));
            all += digits;
        } else {
            all += part;
        }
    };
    (add(parts), ...);
    return all;
}

// Refuses an argument that is not sound; the parts make the message.
template <class... Parts>
void expect(bool sound, const Where& where, const Parts&... parts) {
    if (!sound) throw Trouble{MDTRAJNET_INVALID, text(parts...), where};
}

int report(mdtrajnet_error* error, const Trouble& what, int64_t windows) noexcept {
    if (error) {
        error->code = what.code;
        std::snprintf(error->message, sizeof error->message, "%s", what.message.c_str());
        error->system = what.where.system;
        error->atom = what.where.atom;
        error->windows = windows;
    }
    return what.code;
}

// Does the work of a call, from which no exception goes on to the caller.  windows: how many it does, counted in it.
template <class Work>
int guarded(mdtrajnet_error* error, const Work& work, const int64_t& windows = 0) noexcept {
    const Subnormals subnormals(Subnormals::kZero);
    try {
        work();
        return report(error, {MDTRAJNET_OK, {}, kNowhere}, windows);
    } catch (const Trouble& what) {
        return report(error, what, windows);
    } catch (const std::bad_alloc&) {
        return report(error, {MDTRAJNET_FAILED, "out of memory", kNowhere}, windows);
    } catch (const std::exception& what) {
        return report(error, {MDTRAJNET_FAILED, what.what(), kNowhere}, windows);
    } catch (...) {
        return report(error, {MDTRAJNET_FAILED, "unknown error", kNowhere}, windows);
    }
}

// The systems as the engine takes them, checked.
mdtrajnet::Contents checked(const mdtrajnet::Model& model, const mdtrajnet_systems& s) {
    expect(s.count > 0 && s.ptr && s.numbers && s.masses, kNowhere,
           "expected at least one system, with ptr, numbers and masses, got ", s.count, " systems or a NULL of these");
    expect(!s.cells == !s.periodic, kNowhere, "expected cells and periodic together, or NULL for both");
    expect(s.ptr[0] == 0, kNowhere, "ptr must begin with 0, got ", s.ptr[0]);
    std::string known;
    for (const int64_t z : model.species) known += text(" ", z);
    mdtrajnet::Contents all;
    all.ptr.push_back(0);
    for (int64_t k = 0; k < s.count; ++k) {
        expect(s.ptr[k] < s.ptr[k + 1], {k}, "ptr must increase, but system ", k, " goes from ", s.ptr[k], " to ",
               s.ptr[k + 1]);
        all.ptr.push_back(s.ptr[k + 1]);
        for (int64_t i = s.ptr[k]; i < s.ptr[k + 1]; ++i) {
            const Where here{k, i - s.ptr[k]};
            const auto found = std::find(model.species.begin(), model.species.end(), s.numbers[i]);
            expect(found != model.species.end(), here, "atom ", here.atom, " of system ", k, " has the atomic number ",
                   s.numbers[i], ", but the model knows", known);
            expect(s.masses[i] > 0 && std::isfinite(s.masses[i]), here, "atom ", here.atom, " of system ", k,
                   " has the mass ", s.masses[i], ", expected a positive number of amu");
            all.species.push_back(found - model.species.begin());
            all.masses.push_back(s.masses[i]);
        }
        for (int64_t n = 9 * k; s.cells && n < 9 * k + 9; ++n) {
            expect(std::isfinite(s.cells[n]), {k}, "the cell of system ", k, " has ", s.cells[n],
                   " in it, expected numbers of Å");
            all.cells.push_back(s.cells[n]);
        }
        for (int64_t n = 3 * k; s.periodic && n < 3 * k + 3; ++n) all.pbc.push_back(s.periodic[n] != 0);
    }
    return all;
}

Method method_of(const mdtrajnet::Model& model, int asked) {
    const bool kicks = model.predictor().has_window_potentials();
    expect(MDTRAJNET_BEST <= asked && asked <= MDTRAJNET_PLAIN, kNowhere,
           "method must be one of MDTRAJNET_BEST to MDTRAJNET_PLAIN, got ", asked);
    expect(asked != MDTRAJNET_SYMPLECTIC || kicks, kNowhere,
           "the model has no window potentials, which symplectic windows are of: take MDTRAJNET_REVERSIBLE");
    expect(model.predictor().has_network() || asked == MDTRAJNET_BEST || asked == MDTRAJNET_SYMPLECTIC, kNowhere,
           "the model has no network, which reversible and plain windows are of: take MDTRAJNET_SYMPLECTIC");
    if (asked == MDTRAJNET_PLAIN) return Method::kPlain;
    return asked == MDTRAJNET_REVERSIBLE || !kicks ? Method::kReversible : Method::kSymplectic;
}

double own_window(const mdtrajnet::Model& model, Method method) {
    return method == Method::kSymplectic ? model.symplectic : model.window;
}

}  // namespace

struct mdtrajnet_rollout {
    mdtrajnet_rollout(std::shared_ptr<const mdtrajnet::Model> of, const mdtrajnet_systems& s,
                      const mdtrajnet_options& options)
        : model(std::move(of)), contents(checked(*model, s)), method(method_of(*model, options.method)),
          window(options.window == 0 ? own_window(*model, method) : options.window),
          threads(options.threads ? options.threads : omp_get_max_threads()),
          engine(std::shared_ptr<const mdtrajnet::Predictor>(model, &model->predictor()), contents, model->rules,
                 course(options)) {}

    mdtrajnet::Course course(const mdtrajnet_options& options) const {
        const double longest = model->predictor().head().time_cutoff;
        const bool kicks = method == Method::kSymplectic, plain = method == Method::kPlain;
        const double rate = options.energy_rate < 0 ? (kicks ? model->symplectic_energy_rate : model->energy_rate)
                                                    : options.energy_rate;
        expect(kicks || (0 < window && window <= longest), kNowhere,
               "window must be 0, for the method's own, or a number up to ", longest, " fs, got ", options.window);
        expect(!kicks || window == model->symplectic, kNowhere, "window must be 0 or ", model->symplectic,
               " fs, which the model's symplectic windows are, got ", options.window,
               ": other windows are for MDTRAJNET_REVERSIBLE");
        expect(std::isfinite(rate), kNowhere, "energy_rate must be a number of 1/fs, got ", options.energy_rate);
        expect(!plain || options.energy_rate < 0, kNowhere,
               "energy_rate is not for plain windows, leave it at -1 with them, got ", options.energy_rate);
        expect(threads > 0, kNowhere, "threads must be a number, or 0 for OpenMP's own, got ", options.threads);
        const int64_t every = kicks ? std::max<int64_t>(1, std::lround(model->symplectic_energy_every / window)) : 1;
        const double apart = static_cast<double>(every) * window;
        const int64_t needed = plain ? 1 : 1 + static_cast<int64_t>(std::ceil(model->settling / apart));
        return {method, plain ? std::numeric_limits<double>::infinity() : rate * apart, every,
                model->predictor().has_energies() ? needed : 0};
    }

    void restart() {
        engine.keep({});
        number = 0;
    }

    // The momenta of velocities: those that the last window led to, to the bit, if it also led to the velocities.
    Array momenta_of(const double* v) const {
        if (!velocities.empty() && !std::memcmp(v, velocities.data(), velocities.size() * sizeof *v)) return momenta;
        Array p(v, v + 3 * engine.atoms());
        for (std::size_t n = 0; n < p.size(); ++n) p[n] = p[n] / model->rules.fs * contents.masses[n / 3];
        return p;
    }

    void velocities_of(const double* p, double* v) const {
        for (int64_t n = 0; n < 3 * engine.atoms(); ++n) v[n] = p[n] / contents.masses[n / 3] * model->rules.fs;
    }

    void check_state(const double* x, const double* v) const {
        expect(x && v, kNowhere, "expected positions and velocities, got NULL");
        for (int64_t s = 0; s < engine.systems(); ++s)
            for (int64_t n = 3 * contents.ptr[s]; n < 3 * contents.ptr[s + 1]; ++n) {
                const Where here{s, n / 3 - contents.ptr[s]};
                expect(std::abs(x[n]) < model->farthest, here, "atom ", here.atom, " of system ", s,
                       " has the coordinate ", x[n], ", expected a number of Å below ", model->farthest);
                expect(std::isfinite(v[n]), here, "atom ", here.atom, " of system ", s, " has the velocity ", v[n],
                       ", expected a number of Å/fs");
            }
    }

    void check(const std::optional<mdtrajnet::Broken>& broken) const {
        if (!broken) return;
        std::string why = broken->why;
        if (why.empty())
            why =
                text("atom ", broken->atom, " leaves its course by more than ", model->predictor().head().radial_cutoff,
                     " Å in one window, or its velocity is not finite. The model left the chemistry it was trained on; "
                     "start from a lower temperature or a relaxed geometry");
        throw Trouble{MDTRAJNET_BROKEN,
                      text("the trajectory of system ", broken->system, " broke: ", why),
                      {broken->system, broken->atom}};
    }

    // Windows with frames at times t and at their end, from x and p, which become the state at the end of the last that
    // was done.  Returns positions and momenta of the last one's frames at t.
    std::pair<Array, Array> advance(int64_t windows, Array t, double* x, Array& p, int64_t& done) {
        const std::vector<std::uint8_t> wanted = [&] {
            std::vector<std::uint8_t> inner(t.size(), 1);
            inner.push_back(0);
            return inner;
        }();
        t.push_back(window);
        const auto times = static_cast<int64_t>(t.size());
        const int64_t numbers = 3 * engine.atoms();
        Array next_x((times - 1) * numbers), next_p((times - 1) * numbers), end_x(numbers), end_p(numbers);
        for (done = 0; done < windows; ++done) {
            check(engine.window(x, p.data(),
                                {number, times, t.data(), wanted.data(), next_x.data(), next_p.data(), nullptr,
                                 end_x.data(), end_p.data()},
                                threads));
            std::copy(end_x.begin(), end_x.end(), x);
            p = end_p;
            ++number;
        }
        return {std::move(next_x), std::move(next_p)};
    }

    const std::shared_ptr<const mdtrajnet::Model> model;
    const mdtrajnet::Contents contents;
    const Method method;
    const double window;
    const int threads;
    mdtrajnet::Engine engine;
    int64_t number = 0;         // of the next window
    Array momenta, velocities;  // that the last window led to
};

namespace {

int advance(mdtrajnet_rollout* rollout, int64_t windows, double* x, double* v, int64_t times, const double* t,
            double* frames_x, double* frames_v, mdtrajnet_error* error) {
    int64_t done = 0;
    const auto work = [&] {
        expect(rollout, kNowhere, "expected a rollout, got NULL");
        expect(windows >= 0, kNowhere, "expected a number of windows, got ", windows);
        expect(times >= 0 && (times == 0 || (t && frames_x && frames_v)), kNowhere,
               "expected times and memory for their frames, got ", times, " times or a NULL among these");
        for (int64_t k = 0; k < times; ++k)
            expect(0 < t[k] && t[k] < rollout->window, kNowhere, "times must lie within a window, after 0 and before ",
                   rollout->window, " fs, got ", t[k]);
        mdtrajnet_rollout& of = *rollout;
        of.check_state(x, v);
        Array p = of.momenta_of(v);
        const auto give_back = [&] {
            if (!done) return;
            of.velocities_of(p.data(), v);
            of.velocities.assign(v, v + p.size());
            of.momenta = p;
        };
        try {
            const auto [next_x, next_p] = of.advance(windows, Array(t, t + times), x, p, done);
            std::copy_n(next_x.begin(), times * p.size(), frames_x);
            for (int64_t k = 0; k < times; ++k) of.velocities_of(next_p.data() + k * p.size(), frames_v + k * p.size());
        } catch (...) {
            give_back();
            throw;
        }
        give_back();
    };
    return guarded(error, work, done);
}

}  // namespace

extern "C" {

int mdtrajnet_load(const char* path, mdtrajnet_model** model, mdtrajnet_error* error) {
    return guarded(error, [&] {
        expect(path && model, kNowhere, "expected the path of a file and where to put the model, got NULL");
        *model = nullptr;
        try {
            *model = new mdtrajnet_model{std::make_shared<const mdtrajnet::Model>(path)};
        } catch (const std::runtime_error& what) {
            throw Trouble{MDTRAJNET_FILE, what.what(), kNowhere};
        }
    });
}

void mdtrajnet_free_model(mdtrajnet_model* model) { delete model; }

double mdtrajnet_own_window(const mdtrajnet_model* model) {
    return own_window(*model->it, method_of(*model->it, MDTRAJNET_BEST));
}

int mdtrajnet_has_potential(const mdtrajnet_model* model) { return model->it->predictor().has_energies(); }

int mdtrajnet_knows(const mdtrajnet_model* model, int atomic_number) {
    const auto& known = model->it->species;
    return std::find(known.begin(), known.end(), atomic_number) != known.end();
}

int mdtrajnet_start(const mdtrajnet_model* model, const mdtrajnet_systems* systems, const mdtrajnet_options* options,
                    mdtrajnet_rollout** rollout, mdtrajnet_error* error) {
    return guarded(error, [&] {
        expect(model && systems && rollout, kNowhere,
               "expected a model, systems and where to put the rollout, got NULL");
        *rollout = nullptr;
        const mdtrajnet_options defaults = MDTRAJNET_DEFAULTS;
        *rollout = new mdtrajnet_rollout(model->it, *systems, options ? *options : defaults);
    });
}

void mdtrajnet_free_rollout(mdtrajnet_rollout* rollout) { delete rollout; }

int mdtrajnet_advance(mdtrajnet_rollout* rollout, int64_t windows, double* positions, double* velocities,
                      mdtrajnet_error* error) {
    return advance(rollout, windows, positions, velocities, 0, nullptr, nullptr, nullptr, error);
}

int mdtrajnet_advance_with_frames(mdtrajnet_rollout* rollout, double* positions, double* velocities, int64_t times,
                                  const double* t, double* frame_positions, double* frame_velocities,
                                  mdtrajnet_error* error) {
    return advance(rollout, 1, positions, velocities, times, t, frame_positions, frame_velocities, error);
}

void mdtrajnet_restart(mdtrajnet_rollout* rollout) { rollout->restart(); }

int mdtrajnet_energies(mdtrajnet_rollout* rollout, const double* positions, const double* velocities, double* energies,
                       mdtrajnet_error* error) {
    return guarded(error, [&] {
        expect(rollout && energies, kNowhere, "expected a rollout and where to put energies, got NULL");
        expect(rollout->engine.has_energies(), kNowhere, "expected a model with a potential, this one has none");
        rollout->check_state(positions, velocities);
        const int64_t systems = rollout->engine.systems();
        Array both(2 * systems);
        rollout->check(
            rollout->engine.energies(positions, rollout->momenta_of(velocities).data(), both.data(), rollout->threads));
        std::copy_n(both.begin(), systems, energies);
    });
}

}  // extern "C"
