import csv

from experiments.tables import markdown_table, write_table

HEADER = ("name", "loss", "steps")
ROWS = [("adamw", 1.23456789, 900), ("gpa", 1.2, None)]


def test_columns_line_up_and_missing_values_are_named():
    lines = markdown_table(HEADER, ROWS).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split("|")[2].strip() == "1.235"
    assert lines[3].split("|")[3].strip() == "not reached"


def test_csv_keeps_all_digits(tmp_path):
    table, text = write_table(tmp_path / "table", HEADER, ROWS)
    rows = list(csv.reader(table.open()))
    assert rows == [list(HEADER), ["adamw", "1.23456789", "900"], ["gpa", "1.2", ""]]
    assert text.read_text() == markdown_table(HEADER, ROWS) + "\n"
