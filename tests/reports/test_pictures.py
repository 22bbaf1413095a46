"""Faces cut out of sample grids, of a run that grew too."""

from PIL import Image

from mien.reports.pictures import Layout, cells

LAYOUT = Layout(["all"], columns=2, cell_px=8, padding_px=2)


def grid(cell_px):
    """One row: a red face and a blue one."""
    sheet = Image.new("RGB", (2 * (cell_px + 2) + 2, cell_px + 4), "white")
    for column, colour in enumerate(("red", "blue")):
        sheet.paste(colour, (2 + column * (cell_px + 2), 2, 2 + column * (cell_px + 2) + cell_px, 2 + cell_px))
    return sheet


def test_smaller_faces_of_an_earlier_size_are_enlarged_to_the_layout():
    for size in (8, 4, 16):
        cut = cells(grid(size), LAYOUT, [(0, 1), (0, 0)], across=2)
        assert cut.size == (18, 8)
        assert {cut.getpixel((x, y)) for x in range(8) for y in range(8)} == {(0, 0, 255, 255)}
        assert {cut.getpixel((x, y)) for x in range(10, 18) for y in range(8)} == {(255, 0, 0, 255)}


def test_a_grid_without_the_cell_gives_none():
    assert cells(grid(8), LAYOUT, [(1, 0)], across=1) is None
    assert cells(grid(8), Layout(["all"], columns=3, cell_px=8, padding_px=2), [(0, 2)], across=1) is None
