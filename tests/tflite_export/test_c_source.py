"""The array in C is the file, as a compiler sees it."""

import shutil
import subprocess

import pytest

import tflite_export

MAIN = """#include <stdio.h>
#include <stdint.h>
#include "{header}"
int main(void) {{
  if ((uintptr_t){name} % 16 != 0) return 3;
  return fwrite({name}, 1, {name}_len, stdout) == {name}_len ? 0 : 4;
}}
"""


@pytest.mark.parametrize("compiler", ["gcc", "g++"])
def test_compiled_it_gives_the_bytes_of_the_file(dense, tmp_path, compiler):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} on this machine")
    file = tflite_export.convert(dense, "float16")
    made = tflite_export.c_array(file, tmp_path / "my-net.v2")
    assert (made.header.name, made.source.name, made.name) == ("my-net.v2.h", "my-net.v2.c", "my_net_v2")
    main = tmp_path / ("main.c" if compiler == "gcc" else "main.cc")
    main.write_text(MAIN.format(header=made.header.name, name=made.name))
    objects = []
    for source, tool in ((made.source, "gcc"), (main, compiler)):
        objects.append(tmp_path / f"{source.name}.o")
        subprocess.run([tool, "-Wall", "-Werror", "-pedantic", "-c", source, "-o", objects[-1]], check=True)
    program = tmp_path / "program"
    subprocess.run([compiler, *objects, "-o", program], check=True)
    assert subprocess.run([program], capture_output=True, check=True).stdout == file.content


def test_names_and_places_that_are_refused(dense, tmp_path):
    file = tflite_export.convert(dense, "float32")
    for name in ("1net", "a b", "int", ""):
        with pytest.raises(ValueError, match=r"a name in C .*got .*Pass `name=`"):
            tflite_export.c_array(file, tmp_path / "net", name=name)
    with pytest.raises(ValueError, match="a name in C"):
        tflite_export.c_array(file, tmp_path / "8bit")
    with pytest.raises(ValueError, match="no .tflite|not a .tflite"):
        tflite_export.c_array(b"nothing", tmp_path / "net")
    (tmp_path / "net.c").mkdir()
    with pytest.raises(IsADirectoryError):
        tflite_export.c_array(file, tmp_path / "net")
    assert [path.name for path in tmp_path.iterdir()] == ["net.c"]
    assert tflite_export.c_array(file, tmp_path / "8bit.cc", name="net8").size_bytes == file.size_bytes


def test_files_behind_it_stay_out(classifiers, tmp_path):
    labels = [f"class {number}" * 40 for number in range(5)]
    told = tflite_export.Metadata("Net", labels=labels)
    file = tflite_export.set_metadata(classifiers["int8"], told)
    made = tflite_export.c_array(file, tmp_path / "net")
    assert made.size_bytes < file.size_bytes - sum(map(len, labels))
    body = made.source.read_text().split("[] = {")[1].split("}")[0]
    stored = bytes(int(byte, 16) for byte in body.replace("\n", "").split(","))
    assert file.content.startswith(stored)
    assert tflite_export.read_metadata(file).labels == tuple(labels)
    kept = tflite_export.TFLiteModel.from_content(stored)
    assert [info.name for info in kept.inputs] == ["image"]
