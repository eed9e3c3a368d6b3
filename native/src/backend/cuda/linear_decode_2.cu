#include "backend/cuda/linear_decode_launch.cuh"

template void fasa::cuda::decode::launch_products<2, fasa::cuda::decode::Team::few>(Launch, const Job&, bool);
