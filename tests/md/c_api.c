/* Runs what standard input describes, in C99, and prints what came out: see test_c_api.py. */
#include <inttypes.h>
#include <mdtrajnet.h>
#include <stdio.h>
#include <stdlib.h>

static double number(void) {
    double x;
    if (scanf("%lf", &x) != 1) exit(99);
    return x;
}

static double* numbers(int64_t count) {
    double* x = malloc((count + 1) * sizeof *x);
    for (int64_t k = 0; k < count; ++k) x[k] = number();
    return x;
}

static void print(const double* x, int64_t count) {
    for (int64_t k = 0; k < count; ++k) printf("%a%c", x[k], k + 1 < count ? ' ' : '\n');
}

int main(int count, char** arguments) {
    mdtrajnet_error error;
    mdtrajnet_model* model;
    mdtrajnet_rollout* rollout;
    if (count != 2 || mdtrajnet_load(arguments[1], &model, &error)) return 98;

    const int64_t systems = number(), atoms = number(), calls = number(), windows = number();
    int64_t* ptr = malloc((systems + 1) * sizeof *ptr);
    int32_t* elements = malloc(atoms * sizeof *elements);
    uint8_t* periodic = malloc(3 * systems);
    for (int64_t k = 0; k <= systems; ++k) ptr[k] = number();
    for (int64_t k = 0; k < atoms; ++k) elements[k] = number();
    double *masses = numbers(atoms), *cells = numbers(9 * systems);
    for (int64_t k = 0; k < 3 * systems; ++k) periodic[k] = number();
    double *x = numbers(3 * atoms), *v = numbers(3 * atoms), *energies = malloc(systems * sizeof *energies);
    const mdtrajnet_systems start = {systems, ptr, elements, masses, cells, periodic};
    int code = mdtrajnet_start(model, &start, NULL, &rollout, &error);
    mdtrajnet_free_model(model); /* rollouts keep it */
    for (int64_t k = 0; k < calls && !code; ++k) code = mdtrajnet_advance(rollout, windows, x, v, &error);
    printf("%d %" PRId64 " %" PRId64 " %" PRId64 "\n%s\n", code, error.system, error.atom, error.windows,
           error.message);
    print(x, 3 * atoms);
    print(v, 3 * atoms);
    if (!mdtrajnet_energies(rollout, x, v, energies, NULL)) print(energies, systems);
    mdtrajnet_free_rollout(rollout);
    free(ptr), free(elements), free(periodic), free(masses), free(cells), free(x), free(v), free(energies);
    return 0;
}
