// One translation unit: most of a compiler's time goes into libtorch's headers, which are then read once instead of a dozen times.

#include "attention.cpp"
#include "checkpoint.cpp"
#include "device.cpp"
#include "distributed.cpp"
#include "frozen.cpp"
#include "gate.cpp"
#include "gpu.cpp"
#include "linear.cpp"
#include "norm.cpp"
#include "profile.cpp"
#include "rotate.cpp"
#include "torch_ext.cpp"
