"""Shapes of published architectures, as the original implementation stores them."""


def gpt2_shapes():
    """GPT-2 with 124 million parameters: tied head, (input, output) matrices."""
    width, layers = 768, 12
    shapes = {"wte": (50257, width), "wpe": (1024, width)}
    for layer in range(layers):
        shapes |= {
            f"{layer}/ln_1/scale": (width,),
            f"{layer}/ln_1/bias": (width,),
            f"{layer}/attention/kernel": (width, 3 * width),
            f"{layer}/attention/bias": (3 * width,),
            f"{layer}/projection/kernel": (width, width),
            f"{layer}/projection/bias": (width,),
            f"{layer}/ln_2/scale": (width,),
            f"{layer}/ln_2/bias": (width,),
            f"{layer}/up/kernel": (width, 4 * width),
            f"{layer}/up/bias": (4 * width,),
            f"{layer}/down/kernel": (4 * width, width),
            f"{layer}/down/bias": (width,),
        }
    return shapes | {"ln_f/scale": (width,), "ln_f/bias": (width,)}


def resnet50_shapes():
    """ResNet-50 for ImageNet: convolutions are (out, in, height, width)."""
    shapes = {}

    def convolution(name, outputs, inputs, size):
        shapes[f"{name}/kernel"] = (outputs, inputs, size, size)
        shapes[f"{name}/scale"] = shapes[f"{name}/bias"] = (outputs,)

    convolution("stem", 64, 3, 7)
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            name = f"{stage}/{block}"
            convolution(f"{name}/1", width, inputs, 1)
            convolution(f"{name}/2", width, width, 3)
            convolution(f"{name}/3", 4 * width, width, 1)
            if block == 0:
                convolution(f"{name}/shortcut", 4 * width, inputs, 1)
            inputs = 4 * width
    return shapes | {"head/kernel": (1000, 2048), "head/bias": (1000,)}
