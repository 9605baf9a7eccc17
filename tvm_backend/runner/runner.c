/* Runs an artifact of iqvit without Python: raw frames in, raw integers and latencies out.
 *
 *   runner [-t THREADS] [-r RUNS] [-o OUT] FOLDER FRAMES
 *
 * FOLDER  an artifact, made by `iqvit compile`: model.so and model.txt are read.
 * FRAMES  frames one after the other as the library takes them (model.txt says how), "-" is stdin:
 *         uint8 [height, width, 3] after `compile --input-layout nhwc`, as cameras give them.
 * OUT     what the library returns for each frame: the outputs in the order of model.txt, little
 *         endian, one after the other, without headers; "-" is stdout.
 * RUNS    how often each frame is run (1); THREADS defaults to one for each core.
 *
 * Latencies and the peak of memory go to stderr. The exit status is 0, or 2 after a message.
 *
 * Build, with TVM and TVM_FFI the folders `tvm` and `tvm_ffi` of the wheels apache-tvm and
 * apache-tvm-ffi, of the versions in manifest.json (wheels are zip files; those for another machine
 * come by `pip download --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 ...`):
 *
 *   cc -O2 -o runner runner.c -I$TVM_FFI/include -L$TVM/lib -L$TVM_FFI/lib \
 *     -Wl,--no-as-needed -ltvm_runtime -ltvm_ffi -Wl,--allow-shlib-undefined \
 *     -Wl,-rpath,$TVM/lib:$TVM_FFI/lib
 *
 * Only C is spoken with TVM, so any compiler will do: aarch64-linux-gnu-gcc, or
 * `python -m ziglang cc -target aarch64-linux-gnu.2.28`.
 */

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <tvm/ffi/c_api.h>

enum { MOST_TENSORS = 256, MOST_AXES = 8, ALIGNMENT = 64, CPU_POOL = 2 };

typedef struct {
  char name[64];
  DLDataType type;
  int axes;
  int64_t shape[MOST_AXES];
  size_t bytes;
} Tensor;

typedef struct {
  int inputs, outputs;
  Tensor input[MOST_TENSORS], output[MOST_TENSORS];
} Model;

static void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("error: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  exit(2);
}

/* After a call into TVM: stop with its message where it failed. */
static void check(int status, const char *what) {
  if (status == 0) return;
  TVMFFIObjectHandle error = NULL;
  TVMFFIErrorMoveFromRaised(&error);
  if (error == NULL) fail("%s failed", what);
  const TVMFFIErrorCell *cell = (const TVMFFIErrorCell *)((char *)error + sizeof(TVMFFIObject));
  fail("%s: %.*s", what, (int)cell->message.size, cell->message.data);
}

static TVMFFIAny integer(int64_t value) {
  return (TVMFFIAny){.type_index = kTVMFFIInt, .v_int64 = value};
}

static TVMFFIAny text(const char *value) {
  return (TVMFFIAny){.type_index = kTVMFFIRawStr, .v_c_str = value};
}

static TVMFFIAny object(const TVMFFIAny *owner) { return *owner; }

static TVMFFIAny call(TVMFFIObjectHandle function, TVMFFIAny *arguments, int count,
                      const char *what) {
  TVMFFIAny result = {.type_index = kTVMFFINone};
  check(TVMFFIFunctionCall(function, arguments, count, &result), what);
  return result;
}

static TVMFFIObjectHandle global(const char *name) {
  TVMFFIByteArray bytes = {name, strlen(name)};
  TVMFFIObjectHandle function = NULL;
  check(TVMFFIFunctionGetGlobal(&bytes, &function), name);
  if (function == NULL) fail("this TVM runtime has no function %s", name);
  return function;
}

static TVMFFIObjectHandle member(const TVMFFIAny *module, const char *name) {
  TVMFFIAny arguments[] = {object(module), text(name), {.type_index = kTVMFFIBool, .v_int64 = 0}};
  TVMFFIAny function = call(global("ffi.ModuleGetFunction"), arguments, 3, name);
  if (function.type_index != kTVMFFIFunction) fail("the library has no function %s", name);
  return function.v_obj;
}

static void release(TVMFFIAny *value) {
  if (value->type_index >= kTVMFFIStaticObjectBegin) TVMFFIObjectDecRef(value->v_obj);
}

/* One line of model.txt: input|output NAME TYPE SIZE... */
static void read_tensor(char *line, Model *model, const char *path) {
  const char *kind = strtok(line, " \n"), *name = strtok(NULL, " \n"), *type = strtok(NULL, " \n");
  if (kind == NULL || name == NULL || type == NULL) fail("%s: a line lacks its type", path);
  int is_input = strcmp(kind, "input") == 0;
  int *count = is_input ? &model->inputs : &model->outputs;
  if (*count == MOST_TENSORS) fail("%s: more than %d tensors", path, MOST_TENSORS);
  Tensor *tensor = (is_input ? model->input : model->output) + (*count)++;
  snprintf(tensor->name, sizeof tensor->name, "%s", name);
  int is_unsigned = type[0] == 'u', bits = atoi(type + (is_unsigned ? 4 : 3));
  if (strncmp(type + is_unsigned, "int", 3) != 0 || bits % 8 != 0 || bits < 8 || bits > 32)
    fail("%s: the type %s of %s is none of this program's", path, type, name);
  tensor->type = (DLDataType){is_unsigned ? kDLUInt : kDLInt, (uint8_t)bits, 1};
  tensor->bytes = (size_t)bits / 8;
  for (char *size = strtok(NULL, " \n"); size != NULL; size = strtok(NULL, " \n")) {
    if (tensor->axes == MOST_AXES) fail("%s: %s has more than %d axes", path, name, MOST_AXES);
    tensor->shape[tensor->axes++] = atoll(size);
    tensor->bytes *= (size_t)atoll(size);
  }
}

static Model read_model(const char *folder) {
  char path[4096], line[1024];
  snprintf(path, sizeof path, "%s/model.txt", folder);
  FILE *file = fopen(path, "r");
  if (file == NULL) fail("cannot read %s: is %s an artifact?", path, folder);
  Model model = {0};
  if (fgets(line, sizeof line, file) == NULL || strcmp(line, "iqvit-model 1\n") != 0)
    fail("%s does not begin with 'iqvit-model 1'", path);
  while (fgets(line, sizeof line, file) != NULL) read_tensor(line, &model, path);
  fclose(file);
  if (model.inputs == 0 || model.outputs == 0) fail("%s names no input or no output", path);
  return model;
}

/* TVM's virtual machine over the library of a folder. */
static TVMFFIAny open_machine(const char *folder) {
  char path[4096];
  snprintf(path, sizeof path, "%s/model.so", folder);
  TVMFFIAny name = text(path);
  TVMFFIAny library = call(global("ffi.ModuleLoadFromFile"), &name, 1, path);
  TVMFFIAny machine = call(member(&library, "vm_load_executable"), NULL, 0, path);
  TVMFFIAny devices[] = {integer(kDLCPU), integer(0), integer(CPU_POOL),
                         integer(kDLCPU), integer(0), integer(CPU_POOL)};
  call(member(&machine, "vm_initialization"), devices, 6, "starting the virtual machine");
  return machine;
}

static void keep(DLManagedTensor *self) { (void)self; }

static TVMFFIAny make_input(Tensor *tensor) {
  size_t rounded = (tensor->bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  DLManagedTensor *managed = calloc(1, sizeof *managed);
  void *data = aligned_alloc(ALIGNMENT, rounded);
  if (managed == NULL || data == NULL) fail("no memory for %s", tensor->name);
  managed->dl_tensor = (DLTensor){.data = data,
                                  .device = {kDLCPU, 0},
                                  .ndim = tensor->axes,
                                  .dtype = tensor->type,
                                  .shape = tensor->shape};
  managed->deleter = keep;
  TVMFFIAny result = {.type_index = kTVMFFITensor};
  TVMFFIObjectHandle handle = NULL;
  check(TVMFFITensorFromDLPack(managed, ALIGNMENT, 1, &handle), tensor->name);
  result.v_obj = handle;
  return result;
}

static DLTensor *tensor_of(const TVMFFIAny *value) {
  if (value->type_index != kTVMFFITensor) fail("the library returned something else than tensors");
  return (DLTensor *)((char *)value->v_obj + sizeof(TVMFFIObject));
}

/* Fill the inputs with the next frame; whether there was one. */
static int read_frame(FILE *frames, const Model *model, const TVMFFIAny *inputs) {
  for (int i = 0; i < model->inputs; ++i) {
    size_t wanted = model->input[i].bytes;
    size_t got = fread(tensor_of(&inputs[i])->data, 1, wanted, frames);
    if (got == 0 && i == 0) return 0;
    if (got != wanted) fail("the last frame has %zu bytes where %zu are wanted", got, wanted);
  }
  return 1;
}

static void write_output(FILE *out, const Tensor *tensor, const TVMFFIAny *value) {
  const DLTensor *found = tensor_of(value);
  size_t bytes = found->dtype.bits / 8;
  for (int axis = 0; axis < found->ndim; ++axis) bytes *= (size_t)found->shape[axis];
  if (bytes != tensor->bytes) fail("%s has %zu bytes, not %zu", tensor->name, bytes, tensor->bytes);
  const char *data = (const char *)found->data + found->byte_offset;
  if (out != NULL && fwrite(data, 1, bytes, out) != bytes) fail("cannot write %s", tensor->name);
}

static void write_outputs(FILE *out, const Model *model, const TVMFFIAny *result) {
  if (result->type_index != kTVMFFIArray) {
    if (model->outputs != 1) fail("the library returned one tensor, not %d", model->outputs);
    write_output(out, model->output, result);
    return;
  }
  for (int i = 0; i < model->outputs; ++i) {
    TVMFFIAny arguments[] = {object(result), integer(i)};
    TVMFFIAny item = call(global("ffi.ArrayGetItem"), arguments, 2, model->output[i].name);
    write_output(out, &model->output[i], &item);
    release(&item);
  }
}

static double now_ms(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return 1e3 * (double)time.tv_sec + 1e-6 * (double)time.tv_nsec;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static int positive(const char *value, const char *option) {
  int number = value == NULL ? 0 : atoi(value);
  if (number < 1) fail("%s needs a number of at least 1", option);
  return number;
}

static FILE *open_or_standard(const char *path, const char *mode, FILE *standard) {
  FILE *file = strcmp(path, "-") == 0 ? standard : fopen(path, mode);
  if (file == NULL) fail("cannot open %s", path);
  return file;
}

/* The largest resident set so far, where the kernel says it. */
static void tell_memory(void) {
  FILE *status = fopen("/proc/self/status", "r");
  if (status == NULL) return;
  char line[256];
  long kilobytes;
  while (fgets(line, sizeof line, status) != NULL)
    if (sscanf(line, "VmHWM: %ld kB", &kilobytes) == 1)
      fprintf(stderr, "peak_memory_kb %ld\n", kilobytes);
  fclose(status);
}

int main(int count, char **arguments) {
  int threads = 0, runs = 1, at = 1;
  const char *out_path = NULL;
  for (; at + 1 < count && arguments[at][0] == '-' && arguments[at][1] != '\0'; at += 2) {
    const char *option = arguments[at], *value = arguments[at + 1];
    if (strcmp(option, "-t") == 0)
      threads = positive(value, option);
    else if (strcmp(option, "-r") == 0)
      runs = positive(value, option);
    else if (strcmp(option, "-o") == 0)
      out_path = value;
    else
      fail("unknown option %s", option);
  }
  if (count - at != 2) fail("usage: runner [-t THREADS] [-r RUNS] [-o OUT] FOLDER FRAMES");

  char number[16];
  snprintf(number, sizeof number, "%d", threads);
  if (threads > 0) setenv("TVM_NUM_THREADS", number, 1);
  Model model = read_model(arguments[at]);
  FILE *frames = open_or_standard(arguments[at + 1], "rb", stdin);
  TVMFFIAny machine = open_machine(arguments[at]);
  TVMFFIObjectHandle run = member(&machine, "main");
  FILE *out = out_path == NULL ? NULL : open_or_standard(out_path, "wb", stdout);
  TVMFFIAny inputs[MOST_TENSORS];
  for (int i = 0; i < model.inputs; ++i) inputs[i] = make_input(&model.input[i]);

  size_t done = 0, room = 0;
  double *times = NULL;
  while (read_frame(frames, &model, inputs)) {
    for (int i = 0; i < runs; ++i) {
      double started = now_ms();
      TVMFFIAny result = call(run, inputs, model.inputs, "running the model");
      double spent = now_ms() - started;
      if (done == room) times = realloc(times, (room = 2 * room + 64) * sizeof *times);
      if (times == NULL) fail("no memory for the latencies");
      times[done++] = spent;
      if (i + 1 == runs) write_outputs(out, &model, &result);
      release(&result);
    }
  }
  if (done == 0) fail("%s holds no frame", arguments[at + 1]);
  if (out != NULL && fclose(out) != 0) fail("cannot write %s", out_path);
  qsort(times, done, sizeof *times, ascending);
  fprintf(stderr, "frames %zu\nlatency_ms %.3f\nlatency_p90_ms %.3f\nlatency_min_ms %.3f\n",
          done / (size_t)runs, times[done / 2], times[done * 9 / 10], times[0]);
  tell_memory();
  return 0;
}
