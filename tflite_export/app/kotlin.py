"""Kotlin for a file: one class for each of LiteRT's two interfaces, and a test on the golden vectors."""

import math
import re
from collections.abc import Sequence

from tflite_export.runtime.model import TensorInfo

# dtype -> type of the array in Kotlin, and how CompiledModel's buffers read and write it.
_ARRAYS = {
    "float32": ("FloatArray", "Float"),
    "int8": ("ByteArray", "Int8"),
    "uint8": ("ByteArray", "Int8"),
    "int32": ("IntArray", "Int"),
    "bool": ("BooleanArray", "Boolean"),
}
_BYTES = {"FloatArray": ("asFloatBuffer()", 4), "IntArray": ("asIntBuffer()", 4), "ByteArray": ("", 1)}
_HEAD = "// Not compiled where it was written: compile it, and run the test on a device, before you rely on it.\n"

# The hard keywords of the language, which can name nothing.
KEYWORDS = frozenset(
    [
        "as",
        "break",
        "class",
        "continue",
        "do",
        "else",
        "false",
        "for",
        "fun",
        "if",
        "in",
        "interface",
        "is",
        "null",
        "object",
        "package",
        "return",
        "super",
        "this",
        "throw",
        "true",
        "try",
        "typealias",
        "typeof",
        "val",
        "var",
        "when",
        "while",
    ]
)


def fits(infos: Sequence[TensorInfo]) -> bool:
    """Whether LiteRT's Kotlin classes take tensors of these types."""
    return all(info.dtype in _ARRAYS and info.dtype != "bool" for info in infos)


def compiled_class(
    package: str, name: str, asset: str, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]
) -> str:
    """A class around `CompiledModel` (LiteRT 2): CPU, GPU or NPU."""
    writes = "\n".join(
        f"    inputs[{place}].write{_ARRAYS[info.dtype][1]}({identifier(info.name)})"
        for place, info in enumerate(inputs)
    )
    reads = ", ".join(f"outputs[{place}].read{_ARRAYS[info.dtype][1]}()" for place, info in enumerate(outputs))
    return f"""{_HEAD}package {package}

import android.content.Context
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel

{_documented(inputs, outputs)}
class {name}Compiled(context: Context, accelerator: Accelerator = Accelerator.CPU) : AutoCloseable {{
  private val model = CompiledModel.create(context.assets, "{asset}", CompiledModel.Options(accelerator))
  private val inputs = model.createInputBuffers()
  private val outputs = model.createOutputBuffers()

  fun run({_parameters(inputs)}): {name}Output {{
{writes}
    model.run(inputs, outputs)
    return {name}Output({reads})
  }}

  override fun close() {{
    inputs.forEach {{ it.close() }}
    outputs.forEach {{ it.close() }}
    model.close()
  }}
}}
"""


def interpreter_class(
    package: str, name: str, asset: str, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]
) -> str:
    """A class around `Interpreter` (LiteRT 1, TensorFlow Lite), with what both classes return."""
    fields = ", ".join(f"val {identifier(info.name)}: {_ARRAYS[info.dtype][0]}" for info in outputs)
    buffers = "\n".join(
        f"  private val {what}{place} = ByteBuffer.allocateDirect({_size(info) * _BYTES[_ARRAYS[info.dtype][0]][1]})"
        ".order(ByteOrder.nativeOrder())"
        for what, infos in (("input", inputs), ("output", outputs))
        for place, info in enumerate(infos)
    )
    puts = "\n".join(
        f"    input{place}.rewind()\n    input{place}.{_view(info)}put({identifier(info.name)})\n"
        f"    input{place}.rewind()"
        for place, info in enumerate(inputs)
    )
    gets = "\n".join(
        f"    val result{place} = {_ARRAYS[info.dtype][0]}({_size(info)})\n    output{place}.rewind()\n"
        f"    output{place}.{_view(info)}get(result{place})"
        for place, info in enumerate(outputs)
    )
    given = ", ".join(f"input{place}" for place in range(len(inputs)))
    made = ", ".join(f"{place} to output{place}" for place in range(len(outputs)))
    rewinds = "\n".join(f"    output{place}.rewind()" for place in range(len(outputs)))
    results = ", ".join(f"result{place}" for place in range(len(outputs)))
    return f"""{_HEAD}package {package}

import android.content.Context
import java.io.FileInputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel
import org.tensorflow.lite.Interpreter

class {name}Output({fields})

{_documented(inputs, outputs)}
class {name}Interpreter(context: Context, threads: Int = 2) : AutoCloseable {{
  private val interpreter = Interpreter(mapped(context), Interpreter.Options().setNumThreads(threads))
{buffers}

  fun run({_parameters(inputs)}): {name}Output {{
{puts}
{rewinds}
    interpreter.runForMultipleInputsOutputs(arrayOf<Any>({given}), mapOf<Int, Any>({made}))
{gets}
    return {name}Output({results})
  }}

  override fun close() = interpreter.close()

  private fun mapped(context: Context) =
    context.assets.openFd("{asset}").use {{ file ->
      FileInputStream(file.fileDescriptor).channel.map(
        FileChannel.MapMode.READ_ONLY, file.startOffset, file.declaredLength
      )
    }}
}}
"""


def golden_test(
    package: str, name: str, folder: str, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], runs: int
) -> str:
    """An instrumentation test: both classes give the golden outputs, within their tolerances."""
    given = ", ".join(f'{_kotlin_reader(info)}("golden_inputs_{place}.bin", run)' for place, info in enumerate(inputs))
    checks = "\n".join(
        f'      near({place}, run, {_kotlin_reader(info)}("golden_outputs_{place}.bin", run){_as_doubles(info)}, '
        f"found.{identifier(info.name)}{_as_doubles(info)})"
        for place, info in enumerate(outputs)
    )
    sizes = ", ".join(
        f'"golden_{what}_{place}.bin" to {_size(info)}'
        for what, infos in (("inputs", inputs), ("outputs", outputs))
        for place, info in enumerate(infos)
    )
    return f"""{_HEAD}package {package}

import androidx.test.ext.junit.runners.AndroidJUnit4
import androidx.test.platform.app.InstrumentationRegistry
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.abs
import org.json.JSONObject
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith

@RunWith(AndroidJUnit4::class)
class {name}GoldenTest {{
  private val context = InstrumentationRegistry.getInstrumentation().targetContext
  private val sizes = mapOf({sizes})
  private val told = JSONObject(String(context.assets.open("{folder}/golden.json").readBytes()))

  @Test
  fun interpreterGivesTheGoldenOutputs() = {name}Interpreter(context).use {{ model ->
    for (run in 0 until {runs}) {{
      val found = model.run({given})
{checks}
    }}
  }}

  @Test
  fun compiledModelGivesTheGoldenOutputs() = {name}Compiled(context).use {{ model ->
    for (run in 0 until {runs}) {{
      val found = model.run({given})
{checks}
    }}
  }}

  private fun near(output: Int, run: Int, expected: List<Double>, found: List<Double>) {{
    val tolerance = told.getJSONArray("outputs").getJSONObject(output).getDouble("tolerance")
    val worst = expected.zip(found).maxOf {{ (a, b) -> abs(a - b) }}
    assertTrue("output $output, run $run: off by $worst, accepted is $tolerance", worst <= tolerance)
  }}

  private fun bytes(file: String, run: Int, size: Int): ByteBuffer {{
    val all = context.assets.open("{folder}/$file").readBytes()
    val one = sizes.getValue(file) * size
    return ByteBuffer.wrap(all, run * one, one).slice().order(ByteOrder.LITTLE_ENDIAN)
  }}

  private fun floats(file: String, run: Int) =
    FloatArray(sizes.getValue(file)).also {{ bytes(file, run, 4).asFloatBuffer().get(it) }}

  private fun ints(file: String, run: Int) =
    IntArray(sizes.getValue(file)).also {{ bytes(file, run, 4).asIntBuffer().get(it) }}

  private fun octets(file: String, run: Int) = ByteArray(sizes.getValue(file)).also {{ bytes(file, run, 1).get(it) }}
}}
"""


def identifier(name: str) -> str:
    """A tensor's name in Kotlin."""
    words = [word for word in re.split(r"\W|_", name, flags=re.ASCII) if word] or ["tensor"]
    made = words[0][0].lower() + words[0][1:] + "".join(word[0].upper() + word[1:] for word in words[1:])
    return f"tensor{made}" if made[0].isdigit() or made in KEYWORDS else made


def _documented(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> str:
    lines = [
        f" * {what} {identifier(info.name)}: {_described(info)}"
        for what, infos in (("Input", inputs), ("Output", outputs))
        for info in infos
    ]
    return "\n".join(["/**", *lines, " */"])


def _described(info: TensorInfo) -> str:
    sizes = " x ".join(str(size) for size in info.shape)
    grid = "" if info.scale is None else f"; value = {info.scale!r} * (it - {info.zero_point})"
    return f"{info.dtype}, {sizes}{grid}"


def _parameters(inputs: Sequence[TensorInfo]) -> str:
    return ", ".join(f"{identifier(info.name)}: {_ARRAYS[info.dtype][0]}" for info in inputs)


def _size(info: TensorInfo) -> int:
    return math.prod(size or 1 for size in info.shape)


def _view(info: TensorInfo) -> str:
    view = _BYTES[_ARRAYS[info.dtype][0]][0]
    return f"{view}." if view else ""


def _kotlin_reader(info: TensorInfo) -> str:
    return {"FloatArray": "floats", "IntArray": "ints", "ByteArray": "octets"}[_ARRAYS[info.dtype][0]]


def _as_doubles(info: TensorInfo) -> str:
    return ".map { (it.toInt() and 255).toDouble() }" if info.dtype == "uint8" else ".map { it.toDouble() }"
