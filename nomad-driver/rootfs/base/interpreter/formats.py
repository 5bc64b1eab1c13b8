"""What tables and charts are shown as: the data of a table, and what a figure shows, beside their pictures.

pandas and matplotlib are not imported for it: what belongs to them is done when a user imports them.
"""


def install(shell):
    """Adds the formats to a shell."""
    from IPython.core.formatters import BaseFormatter
    from traitlets import ObjectName, Unicode

    class Data(BaseFormatter):
        format_type = Unicode("e2b/data")
        print_method = ObjectName("_repr_e2b_data_")
        _return_type = dict

    class Chart(BaseFormatter):
        format_type = Unicode("e2b/chart")
        print_method = ObjectName("_repr_e2b_chart_")
        _return_type = dict

    parent = shell.display_formatter
    formatters = parent.formatters
    data, chart = Data(parent=parent), Chart(parent=parent)
    formatters["e2b/data"], formatters["e2b/chart"] = data, chart

    def plain(v):
        """JSON's own types for what is none: times as ISO text, numbers of numpy as numbers, all else as text."""
        if v is None or isinstance(v, (bool, int, str)):
            return v
        if isinstance(v, float):
            return v if v == v and abs(v) != float("inf") else None
        if hasattr(v, "isoformat"):
            return v.isoformat()
        if hasattr(v, "item"):
            return plain(v.item())
        return str(v)

    def table(df):
        return {str(name): [plain(v) for v in df[name].tolist()] for name in df.columns}

    def converter(axis):
        return axis.get_converter() if hasattr(axis, "get_converter") else axis.converter

    def scale(axis):
        import matplotlib.category
        import matplotlib.dates

        # Dates come through a converter that chooses one of the others, and is none of their kind.
        if isinstance(converter(axis), (matplotlib.dates.DateConverter, matplotlib.dates._SwitchableDateConverter)):
            return "datetime"
        if isinstance(converter(axis), matplotlib.category.StrCategoryConverter):
            return "categorical"
        return axis.get_scale()

    def shown(axis, values):
        """Numbers on an axis as what they stand for: times as ISO text, categories as their names."""
        import matplotlib.dates

        kind = scale(axis)
        if kind == "datetime":
            return [matplotlib.dates.num2date(v).isoformat() for v in values]
        if kind == "categorical" and axis.units is not None:
            names = {at: name for name, at in axis.units._mapping.items()}
            return [names.get(v, plain(v)) for v in values]
        return [plain(v) for v in values]

    def unit(label):
        import re

        m = re.search(r"\(([^)]+)\)", label or "")
        return m.group(1) if m else None

    def points(ax, xs, ys):
        return [list(p) for p in zip(shown(ax.xaxis, xs), shown(ax.yaxis, ys))]

    def flat(ax):
        return {"title": ax.get_title() or None, "x_label": ax.get_xlabel() or None, "y_label": ax.get_ylabel() or None,
                "x_unit": unit(ax.get_xlabel()), "y_unit": unit(ax.get_ylabel())}

    def pointed(ax, kind, elements):
        return dict(
            flat(ax), type=kind, elements=elements,
            x_ticks=shown(ax.xaxis, ax.get_xticks()), x_tick_labels=[t.get_text() for t in ax.get_xticklabels()],
            x_scale=scale(ax.xaxis), y_ticks=shown(ax.yaxis, ax.get_yticks()),
            y_tick_labels=[t.get_text() for t in ax.get_yticklabels()], y_scale=scale(ax.yaxis))

    def label(artist, n):
        text = str(artist.get_label())
        return text if text and not text.startswith("_") else f"Line {n}"

    def extract(ax):
        from matplotlib.collections import PathCollection
        from matplotlib.container import BarContainer
        from matplotlib.patches import Wedge

        wedges = [p for p in ax.patches if isinstance(p, Wedge)]
        if wedges:
            names = [t.get_text() for t in ax.texts]
            step = max(1, len(names) // len(wedges))
            return {"type": "pie", "title": ax.get_title() or None, "elements": [
                {"label": names[i * step] if i * step < len(names) else "", "angle": plain(abs(w.theta2 - w.theta1)), "radius": plain(w.r)}
                for i, w in enumerate(wedges)]}
        bars = [c for c in ax.containers if isinstance(c, BarContainer)]
        if bars:
            elements = []
            for c in bars:
                group = str(c.get_label())
                upright = getattr(c, "orientation", "vertical") != "horizontal"
                axis = ax.xaxis if upright else ax.yaxis
                names = {round(v, 6): t.get_text() for v, t in zip(axis.get_ticklocs(), axis.get_ticklabels())}
                for b in c.patches:
                    at = b.get_x() + b.get_width() / 2 if upright else b.get_y() + b.get_height() / 2
                    elements.append({"label": names.get(round(at, 6)) or str(plain(at)), "group": "" if group.startswith("_") else group,
                                     "value": plain(b.get_height() if upright else b.get_width())})
            return dict(flat(ax), type="bar", elements=elements)
        boxes = box_plot(ax)
        if boxes is not None:
            return boxes
        scatters = [c for c in ax.collections if isinstance(c, PathCollection)]
        if scatters:
            return pointed(ax, "scatter", [
                {"label": label(c, i), "points": points(ax, *zip(*c.get_offsets().tolist()))}
                for i, c in enumerate(scatters) if len(c.get_offsets())])
        if ax.lines:
            return pointed(ax, "line", [
                {"label": label(line, i), "points": points(ax, line.get_xdata(orig=False), line.get_ydata(orig=False))}
                for i, line in enumerate(ax.lines)])
        return {"type": "unknown", "title": ax.get_title() or None, "elements": []}

    def box_plot(ax):
        found = getattr(ax, "_soulbox_boxes", None)
        if not found:
            return None
        elements = []
        for i, s in enumerate(found):
            elements.append({"label": str(s.get("label", i + 1)), "min": plain(s["whislo"]), "first_quartile": plain(s["q1"]),
                             "median": plain(s["med"]), "third_quartile": plain(s["q3"]), "max": plain(s["whishi"]),
                             "outliers": [plain(v) for v in s.get("fliers", [])]})
        return dict(flat(ax), type="box_and_whisker", elements=elements)

    def figure(fig):
        charts = [extract(ax) for ax in fig.get_axes()]
        if not charts:
            return {"type": "unknown", "title": None, "elements": []}
        if len(charts) == 1:
            return charts[0]
        return {"type": "superchart", "title": fig.get_suptitle() if hasattr(fig, "get_suptitle") else None, "elements": charts}

    def hooked():
        """Figures say what they show. A box plot's numbers are nowhere in what is drawn, so they are kept when it is drawn."""
        from matplotlib.axes import Axes
        from matplotlib.figure import Figure

        Figure._repr_e2b_chart_ = figure  # IPython forgets formatters that are registered for the class
        draw = Axes.bxp

        def bxp(self, bxpstats, *args, **kwargs):
            self._soulbox_boxes = list(bxpstats)
            return draw(self, bxpstats, *args, **kwargs)

        Axes.bxp = bxp

    class WhenImported:
        """Calls hooked as soon as matplotlib's figures are there."""

        def find_spec(self, name, path=None, target=None):
            import importlib.util
            import sys

            if name != "matplotlib.figure":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                hooked()

            spec.loader.exec_module = exec_module
            return spec

    import sys

    sys.meta_path.insert(0, WhenImported())
    data.for_type_by_name("pandas.core.frame", "DataFrame", table)

