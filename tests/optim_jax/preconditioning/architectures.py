"""Shapes of the parameters of two well-known models, in the layout of torch."""


def gpt2_shapes() -> dict[str, tuple[int, ...]]:
    """GPT-2 small: 12 layers of width 768 with biases, the head tied to `wte`."""
    width, layers = 768, 12
    shapes: dict[str, tuple[int, ...]] = {}
    shapes |= {"wte": (50257, width), "wpe": (1024, width)}
    for layer in range(layers):
        for norm in ("ln_1", "ln_2"):
            shapes[f"h{layer}/{norm}/scale"] = (width,)
            shapes[f"h{layer}/{norm}/bias"] = (width,)
        linears = {
            "attention/qkv": (3 * width, width),
            "attention/out": (width, width),
            "mlp/up": (4 * width, width),
            "mlp/down": (width, 4 * width),
        }
        for name, (outputs, inputs) in linears.items():
            shapes[f"h{layer}/{name}/kernel"] = (outputs, inputs)
            shapes[f"h{layer}/{name}/bias"] = (outputs,)
    shapes["ln_f/scale"] = shapes["ln_f/bias"] = (width,)
    return shapes


def resnet50_shapes() -> dict[str, tuple[int, ...]]:
    """ResNet-50 for 1000 classes: kernels (outputs, inputs, height, width)."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, outputs: int, inputs: int, size: int) -> None:
        shapes[f"{name}/kernel"] = (outputs, inputs, size, size)
        shapes[f"{name}/norm/scale"] = (outputs,)
        shapes[f"{name}/norm/bias"] = (outputs,)

    convolution("stem", 64, 3, 7)
    inputs = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            name = f"stage{stage}/block{block}"
            convolution(f"{name}/reduce", width, inputs, 1)
            convolution(f"{name}/conv", width, width, 3)
            convolution(f"{name}/expand", 4 * width, width, 1)
            if block == 0:
                convolution(f"{name}/shortcut", 4 * width, inputs, 1)
            inputs = 4 * width
    shapes["fc/kernel"] = (1000, inputs)
    shapes["fc/bias"] = (1000,)
    return shapes
